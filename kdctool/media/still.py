"""A picture as a clip of one frame without sound: header first, then pixels, by Pillow inside a worker's fences.

An upright JPEG that need not shrink is kept byte for byte; every other picture becomes a JPEG.
"""

import io
import os
import warnings
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdctool.media.container import check_file
from kdctool.media.geometry import geometry
from kdctool.media.names import clip_folder, frame_name
from kdctool.media.quarantine import Rejected
from kdctool.media.settings import Item, Settings
from kdctool.media.source import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP")
"""By content, whatever the suffix says."""
MAX_BYTES = 256 << 20
MAX_STORED_PIXELS = 16_777_216
"""Readers of shards decode no larger JPEG; a strip may be larger although its short side is not."""
_DEGREES = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}
"""EXIF orientation -> `rotation` of the manifest, counter-clockwise; of mirrored ones without the mirror."""
_ORIENTATION = 0x0112
_WIDE = ("I;16", "I;16B", "I;16L", "I")
"""Modes with 16 bits a pixel, of which the upper 8 are taken."""


@dataclass(frozen=True)
class Picture:
    """What becomes of a picture."""

    content: bytes
    """The JPEG that is stored."""
    pixels: NDArray[np.uint8]
    """(H, W, 3), before compression."""
    width: int
    height: int
    """Of the source, upright."""
    rotation: int
    crop: list[int]
    """x, y, w, h of what is stored, in the pixels of the upright source."""
    source_sha256: str

    def row(self, uid: str) -> dict[str, Any]:
        """What the manifest says of it alone."""
        return {
            "modalities": ["video"],
            "frames": [f"{clip_folder(uid)}/{frame_name(0, 1)}"],
            "frame_times": [0.0],
            "width": self.width,
            "height": self.height,
            "rotation": self.rotation,
            "crop": self.crop,
            "decoder": "pillow",
            "source_sha256": self.source_sha256,
        }


def read(path: str, item: Item, settings: Settings) -> Picture:
    """The picture at `path`; Rejected where it is none, damaged, or larger than the limits."""
    if item.start_ms:
        raise Rejected("outside", "a picture has no time")
    if check_file(path).st_size > MAX_BYTES:
        raise Rejected("too_large", f"more than {MAX_BYTES >> 20} MB")
    data = _bytes(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What Pillow thinks of odd metadata is for nobody to see.
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _picture(data, image, settings)
        except UnidentifiedImageError as error:
            raise Rejected("unreadable", "neither JPEG nor PNG nor WebP") from error
        except Image.DecompressionBombError as error:
            raise Rejected("too_large", str(error)) from error
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
            reason = "truncated" if "truncated" in str(error) else "decode_error"
            raise Rejected(reason, f"{error}") from error


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = "no_permission" if isinstance(error, PermissionError) else "io_error"
        raise Rejected(reason, error.strerror or "") from error


def _picture(data: bytes, image: Image.Image, settings: Settings) -> Picture:
    if image.width * image.height > MAX_PIXELS:
        raise Rejected("too_large", f"{image.width} x {image.height} pixels")
    turn = image.getexif().get(_ORIENTATION, 1)
    image.load()
    upright = _rgb(ImageOps.exif_transpose(image))
    shown, crop = _fitted(upright, settings)
    is_kept = image.format == "JPEG" and image.mode in ("RGB", "L") and turn in (0, 1) and shown is upright
    return Picture(
        content=data if is_kept else _jpeg(shown, settings.jpeg_quality),
        pixels=np.asarray(shown),
        width=upright.width,
        height=upright.height,
        rotation=_DEGREES.get(turn, 0),
        crop=crop,
        source_sha256=sha256(data).hexdigest(),
    )


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; what is transparent shows the colour that is stored there."""
    if image.mode in _WIDE:
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide.clip(0, 0xFFFF) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _fitted(image: Image.Image, settings: Settings) -> tuple[Image.Image, list[int]]:
    """The picture as it is stored, and where that lies in it; the same object where nothing changes."""
    width, height = image.size
    if settings.fit == "keep":
        share = min(1.0, settings.size / min(width, height))
        size = max(1, round(width * share)), max(1, round(height * share))
        if size[0] * size[1] > MAX_STORED_PIXELS:
            raise Rejected("too_large", f"{size[0]} x {size[1]} pixels would be stored")
        same = size == image.size
        return image if same else image.resize(size, Image.Resampling.BICUBIC), [0, 0, width, height]
    shape = geometry(_Upright(width, height), None, settings.size, settings.fit)
    scaled = np.asarray(image.resize(shape.scaled, Image.Resampling.BICUBIC))
    return Image.fromarray(shape.finish(scaled)), shape.crop


@dataclass(frozen=True)
class _Upright:
    """What `geometry` asks of a decoded frame."""

    width: int
    height: int
    side_data: tuple[()] = ()


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
