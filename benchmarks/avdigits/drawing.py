"""What is seen: two handwritten digits that pulse, on a coloured background without sharp edges. And their boxes."""

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avdigits.protocol import NUM_FRAMES, PULSE, SIDE, Clip, Digit
from avdigits.sound import Floats

INK = 51
"""Grey value (of 255) from which a pixel of a handwritten digit belongs to its box."""
DARK, BRIGHT = 15.0, 90.0
"""Grey values between which the background lies; the dimmest digit is at 127."""
SATURATION = 0.85


def draw(
    clip: Clip, images: NDArray[np.uint8], envelopes: tuple[Floats, Floats], only: list[int] | None = None
) -> NDArray[np.uint8]:
    """Frames (N, 112, 112, 3); `only` draws some of them."""
    empty = background(np.random.default_rng([clip.seed, 0]))
    wanted = list(range(NUM_FRAMES)) if only is None else only
    frames = np.repeat(empty[None], len(wanted), axis=0)
    for digit, pulse in zip((clip.sounding, clip.silent), envelopes, strict=True):
        shape = Image.fromarray(squared(images[digit.image]))
        for frame, number in zip(frames, wanted, strict=True):
            x0, y0, x1, y1 = box(digit, float(pulse[number]))
            cover = np.asarray(shape.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC), np.float64)[..., None] / 255
            value = 0.5 + 0.5 * float(pulse[number])
            colour = 255 * np.array(colorsys.hsv_to_rgb(digit.hue, SATURATION, value))
            place = frame[y0:y1, x0:x1]
            place[...] = place * (1 - cover) + colour * cover
    return np.clip(np.round(frames), 0, 255).astype(np.uint8)


def boxes(digit: Digit, pulse: Floats) -> list[list[int]]:
    """[x0, y0, x1, y1] in pixels for each frame; x1 and y1 are past the last pixel."""
    return [list(box(digit, float(value))) for value in pulse]


def box(digit: Digit, pulse: float) -> tuple[int, int, int, int]:
    """The square of a digit at a point of its pulse, 0-1."""
    side = round(digit.size * (1 + PULSE * pulse))
    x0, y0 = digit.x - side // 2, digit.y - side // 2
    return x0, y0, x0 + side, y0 + side


def squared(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The ink of a handwritten digit in a square without margin, so that sizes mean the same for every digit."""
    rows, columns = np.flatnonzero((image >= INK).any(1)), np.flatnonzero((image >= INK).any(0))
    ink = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(ink.shape)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
    square[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return square


def background(rng: np.random.Generator) -> Floats:
    """Colours of low frequency (112, 112, 3)."""
    coarse = rng.uniform(DARK, BRIGHT, size=(4, 4, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float64)
