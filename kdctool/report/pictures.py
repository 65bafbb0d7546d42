"""Arrays to data URIs: JPEG and PNG by Pillow, sound as MP3, which every browser plays. Equal arrays, equal bytes."""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

Floats = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]

FULL, SMALL = 208, 104
"""Longest edge of a picture; small where the page would grow too large."""
QUALITY = 80
MAGMA = (0x000004, 0x1C1044, 0x4F127B, 0x812581, 0xB5367A, 0xE55064, 0xFB8761, 0xFEC287, 0xFCFDBF)
INFERNO = (0x000004, 0x1F0C48, 0x550F6D, 0x88226A, 0xBA3655, 0xE35933, 0xF98C0A, 0xF9C932, 0xFCFFA4)
REMOVED = (112, 116, 122)
"""Grey of what the model could not see; no colour of a map is grey."""


def picture(pixels: Pixels, edge: int = FULL) -> str:
    """uint8 (H, W, 3) as a JPEG whose longest edge is at most `edge`."""
    return _jpeg(Image.fromarray(np.ascontiguousarray(pixels)), edge)


def spectrogram(fbank: Floats, low: float, high: float, edge: int = FULL) -> str:
    """Log-mel (T, F) as a JPEG: time to the right, high tones on top; NaN is grey."""
    return _jpeg(Image.fromarray(spectrogram_pixels(fbank, low, high)), edge, stretch=True)


def spectrogram_pixels(fbank: Floats, low: float, high: float) -> Pixels:
    """Log-mel (T, F) as colours, uint8 (F, T, 3), `low` to `high` from dark to bright."""
    values = np.asarray(fbank, dtype=np.float32).T[::-1]  # (F, T)
    removed = np.isnan(values)
    colours = coloured(np.where(removed, low, values), low, high, MAGMA)
    colours[removed] = REMOVED
    return colours


def levels(fbank: Floats) -> tuple[float, float]:
    """The range in which a spectrogram is drawn: all but its faintest 2 % and its loudest 0.2 %."""
    values = np.asarray(fbank, dtype=np.float32)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (2, 99.8))
    return float(low), float(max(high, low + 1e-3))


def heat(heat_map: Floats, edge: int = FULL) -> str:
    """A map (H, W) in 0-1 as a PNG to lie over its frame: the higher, the brighter and the less transparent.

    At full size it keeps its pixels, so that its highest one stays where it is.
    """
    values = np.clip(np.nan_to_num(np.asarray(heat_map, dtype=np.float32)), 0, 1)
    if edge < FULL:
        values = np.asarray(Image.fromarray(values).resize((edge, edge), Image.Resampling.BOX))
    alpha = np.round(255 * 0.8 * values**2).astype(np.uint8)
    pixels = np.dstack([coloured(values, 0.0, 1.0, INFERNO), alpha])
    pixels[alpha == 0] = 0
    # A quarter of the shades: they cannot be told apart on top of a picture, and the file is half as large.
    pixels[..., :3] &= 0xFC
    return _uri("image/png", _saved(Image.fromarray(pixels, "RGBA"), "PNG", optimize=True))


def counts(table: Floats, cell: int) -> str:
    """A table (K, K) in 0-1 as a PNG with `cell` pixels to each value."""
    pixels = coloured(np.asarray(table), 0.0, 1.0, MAGMA).repeat(cell, 0).repeat(cell, 1)
    return _uri("image/png", _saved(Image.fromarray(pixels), "PNG", optimize=True))


def sound(samples: npt.NDArray[np.int16], sample_rate: int) -> str:
    """int16 (S,) as MP3 of about 32 kbit/s; FLAC, eight times larger, where libsndfile is older than 1.1."""
    name, subtype, kind = (
        ("MP3", "MPEG_LAYER_III", "audio/mpeg")
        if "MP3" in soundfile.available_formats()
        else ("FLAC", "PCM_16", "audio/flac")
    )
    held = io.BytesIO()
    soundfile.write(held, samples, sample_rate, format=name, subtype=subtype)
    return _uri(kind, held.getvalue())


def coloured(values: Floats, low: float, high: float, ramp: tuple[int, ...]) -> Pixels:
    """Values of any shape to colours, uint8 (..., 3), along a ramp of 0xRRGGBB."""
    anchors = np.array([[c >> 16, c >> 8 & 255, c & 255] for c in ramp], dtype=np.float64)
    steps = np.linspace(0, len(ramp) - 1, 256)
    shades = np.stack([np.interp(steps, np.arange(len(ramp)), anchors[:, i]) for i in range(3)], axis=1)
    place = np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low), 0, 1)
    return np.round(shades).astype(np.uint8)[np.round(place * 255).astype(int)]


def _jpeg(image: Image.Image, edge: int, stretch: bool = False) -> str:
    """`stretch`: a spectrogram, which has no shape of its own, as 2 to 1."""
    if stretch:
        image = image.resize(
            (edge, edge // 2), Image.Resampling.BOX if image.width > edge else Image.Resampling.NEAREST
        )
    elif max(image.size) > edge:
        scale = edge / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return _uri("image/jpeg", _saved(image, "JPEG", quality=QUALITY, subsampling=0, optimize=True))


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
