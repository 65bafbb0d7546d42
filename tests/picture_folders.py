"""Folders of small pictures, and shards made of them by the real commands."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from kdctool.media.settings import Settings
from kdctool.stages import extract_to_shards

PICTURES = Settings(frames=1, size=512, fit="keep", images=True)
COLOURS = ("blue", "green", "red")


def picture(seed: int, size: tuple[int, int] = (60, 44), channel: int | None = None) -> Image.Image:
    """Noise of a width and height; brighter in one channel when that is given."""
    pixels = np.random.default_rng(seed).integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    if channel is not None:
        pixels[..., channel] += 120
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "JPEG", **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def class_folders(folder: Path, each: int = 16) -> Path:
    """blue/0.jpg, green/0.jpg, red/0.jpg ...: the colour tells the class."""
    for channel, name in enumerate(COLOURS):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            seed = 100 * channel + number
            (folder / name / f"{number}.jpg").write_bytes(encoded(picture(seed, channel=channel)))
    return folder


def picture_shards(folder: Path, each: int = 16) -> Path:
    """Shards of `class_folders` with their labels."""
    pictures = class_folders(folder / "pictures", each)
    extract_to_shards.run(
        str(pictures),
        str(folder / "shards"),
        PICTURES,
        packing={"labels": ["folders"], "clips_per_shard": 20},
        workers=1,
    )
    return folder / "shards"
