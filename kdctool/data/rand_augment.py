"""timm's RandAugment, drawn from a clip's own seed.

timm takes its random numbers from the global generators of Python and NumPy. They are lent to it, seeded, for one
picture at a time, and put back as they were.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from kdctool.seeds import fold

_ONE_AT_A_TIME = threading.Lock()


def rand_augment(picture: np.ndarray, policy: str, mean: tuple[float, ...], seed: int) -> np.ndarray:
    """RandAugment of the picture of this seed, uint8 (H, W, 3); `mean` (in 0-1) fills places without a pixel."""
    transform = _transform(policy, min(picture.shape[:2]), mean)
    with _drawing_from(fold(seed, "rand augment")):
        return np.array(transform(Image.fromarray(picture)))


@lru_cache(maxsize=8)
def _transform(policy: str, size: int, mean: tuple[float, ...]) -> Any:
    """With the settings of timm's transforms_imagenet_train for bicubic pictures, not with those of its own default."""
    from timm.data.auto_augment import rand_augment_transform

    fill = tuple(min(255, round(255 * value)) for value in mean)
    settings = {"translate_const": int(size * 0.45), "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
    transform = rand_augment_transform(policy, settings)
    for step in transform.ops:
        if step.name.startswith("Posterize"):
            step.aug_fn = _posterize
    return transform


def _posterize(picture: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's, which asks for 0 bits at full magnitude: black, as published runs saw it. Newer Pillows refuse that."""
    return ImageOps.posterize(picture, bits_to_keep) if bits_to_keep > 0 else picture.point(lambda _: 0)


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators give what follows from `seed`; afterwards they go on where they stood."""
    with _ONE_AT_A_TIME:
        python, numpy = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
