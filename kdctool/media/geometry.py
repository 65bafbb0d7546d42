"""From a decoded picture to what a person sees: upright, right aspect, cropped; and where that lies in the source."""

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdctool.media.quarantine import Rejected

MAX_SCALED_PIXELS = 8_000_000
"""A picture 10,000 times as wide as high would be scaled to gigabytes."""


@dataclass(frozen=True)
class Turn:
    """How a stored picture becomes upright: swap the axes first, then flip."""

    swap: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def degrees(self) -> int:
        """The turn counter-clockwise, 0 to 270; of a mirrored picture the turn without the mirror."""
        if self.swap:
            return 90 if self.flip_y else 270
        return 180 if self.flip_y else 0

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a (H, W, 3) picture upright."""
        if self.swap:
            picture = picture.transpose(1, 0, 2)
        return picture[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


def turn_of(frame: Any) -> Turn:
    """Read the display matrix of a decoded frame; right angles and mirrors, anything else to the nearest."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX" and len(bytes(data)) >= 20:
            a, b, _, c, d = struct.unpack("<5i", bytes(data)[:20])
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return Turn(flip_x=a < 0, flip_y=d < 0)
            return Turn(swap=True, flip_x=c < 0, flip_y=b < 0)
    return Turn()


@dataclass(frozen=True)
class Geometry:
    """Sizes on the way from a stored picture to a square one."""

    turn: Turn
    scaled: tuple[int, int]
    """Width and height that the decoder delivers, before turning."""
    width: int
    height: int
    """What a player shows of the source: upright, square pixels."""
    size: int

    @property
    def _corner(self) -> tuple[int, int]:
        w, h = self._upright
        return round((w - self.size) / 2), round((h - self.size) / 2)

    @property
    def _upright(self) -> tuple[int, int]:
        w, h = self.scaled
        return (h, w) if self.turn.swap else (w, h)

    @property
    def crop(self) -> list[int]:
        """x, y, w, h of what a stored frame shows, in the pixels of the shown source.

        A padded frame shows more than the picture: x or y is negative, w and h are its long side.
        """
        (left, top), (w, h) = self._corner, self._upright
        across, down = self.width / w, self.height / h
        return [round(left * across), round(top * down), round(self.size * across), round(self.size * down)]

    def finish(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) as delivered -> (size, size, 3) upright, its centre cropped or padded with black, contiguous."""
        (left, top), upright = self._corner, self.turn(picture)
        kept = upright[max(0, top) :, max(0, left) :][: self.size, : self.size]
        if kept.shape[:2] == (self.size, self.size):
            return np.ascontiguousarray(kept)
        square = np.zeros((self.size, self.size, 3), np.uint8)
        square[max(0, -top) :, max(0, -left) :][: kept.shape[0], : kept.shape[1]] = kept
        return square


NO_PICTURE = Geometry(Turn(), (1, 1), 0, 0, 1)
"""Of a clip that is sound alone."""


def geometry(
    frame: Any, sample_aspect: Fraction | None, size: int, fit: Literal["crop", "pad", "squash"] = "crop"
) -> Geometry:
    """The geometry of a stream from its first frame.

    crop: the short side becomes `size`, the long one is rounded down. pad: the long side does. squash: both do.
    """
    turn = turn_of(frame)
    aspect = sample_aspect if sample_aspect and sample_aspect > 0 else Fraction(1)
    shown_w, shown_h = Fraction(frame.width), Fraction(frame.height)
    if aspect > 1:
        shown_w *= aspect
    else:
        shown_h /= aspect
    whole = {"crop": min(shown_w, shown_h), "pad": max(shown_w, shown_h)}.get(fit)
    scaled = (
        (size, size) if whole is None else (max(1, int(shown_w * size / whole)), max(1, int(shown_h * size / whole)))
    )
    if scaled[0] * scaled[1] > MAX_SCALED_PIXELS:
        raise Rejected("too_large", f"{frame.width}x{frame.height} would be scaled to {scaled[0]}x{scaled[1]}")
    width, height = round(shown_w), round(shown_h)
    return Geometry(turn, scaled, *((height, width) if turn.swap else (width, height)), size)
