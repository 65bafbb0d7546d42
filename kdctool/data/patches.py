"""Rectangles of a picture that training replaces: by another clip's pixels (cutmix) or by noise (random erasing).

Both are timm's, drawn here by hand: timm draws from the global generators, which other threads of a training use too,
and the noise of an erased picture from that of its device.
"""

import math

import numpy as np
import torch
from torch import Tensor

from kdctool.data.frames import Box
from kdctool.data.noise import uniform
from kdctool.seeds import fold

AREA = (0.02, 1 / 3)
"""Smallest and largest share of the picture that is erased."""
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_TRIES = 10
_AT_ONCE = 64
"""Pictures whose noise is made at the same time: 150,000 numbers each at 224 pixels."""


def draw_erasing(seed: int, share: float, height: int, width: int) -> Box | None:
    """Whether and where the picture of this seed is erased, as by timm's RandomErasing with one rectangle.

    Its height over its width lies in 0.3 to 1 / 0.3, uniform in the logarithm. Where ten draws do not fit into the
    picture, it stays whole.
    """
    rng = np.random.default_rng(fold(seed, "erase"))
    if rng.random() >= share:
        return None
    for _ in range(_TRIES):
        area, aspect = height * width * rng.uniform(*AREA), math.exp(rng.uniform(*_LOG_ASPECT))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return None


def draw_cut(seed: int, alpha: float, height: int, width: int) -> tuple[Box, float]:
    """Cutmix of the clip of this seed: the rectangle that its partner fills, and the share of the area that is left.

    Beta(alpha, alpha) gives the share, the rectangle has the picture's shape and its centre anywhere in it. What sticks
    out is cut off, and the share is that of what remains, as by timm's cutmix_bbox_and_lam.
    """
    rng = np.random.default_rng(fold(seed, "cutmix"))
    side = math.sqrt(1 - rng.beta(alpha, alpha))
    h, w = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(0, y - h // 2), max(0, x - w // 2)
    bottom, right = min(height, y + (h + 1) // 2), min(width, x + (w + 1) // 2)
    box = top, left, bottom - top, right - left
    return box, 1 - box[2] * box[3] / (height * width)


def erase(frame: Tensor, rows: Tensor, boxes: Tensor, keys: Tensor) -> None:
    """Fill a rectangle of some pictures with standard normal noise, in place: the same noise for the same key.

    frame (B, C, H, W) normalised; rows (E,) which pictures, boxes (E, 4), keys (E,) int64.
    """
    if not len(rows):
        return
    for row, box, key in zip(*(x.split(_AT_ONCE) for x in (rows, boxes, keys)), strict=True):
        pictures = frame[row]
        noise = standard_normal(key, pictures[0].numel()).view_as(pictures).to(frame.dtype)
        frame[row] = torch.where(inside(box, *frame.shape[2:])[:, None], noise, pictures)


def standard_normal(keys: Tensor, count: int) -> Tensor:
    """float32 (B, count) from keys (B,) int64; equal keys give equal rows, on any device to rounding."""
    # uniform() gives multiples of 2^-24: the middles of its steps, in (-1, 1), are exact in float32 and never the ends.
    return torch.erfinv(uniform(keys, count).mul_(2).sub_(1 - 2.0**-24)).mul_(math.sqrt(2))


def paste(first: Tensor, second: Tensor, boxes: Tensor) -> Tensor:
    """`second` inside its box and `first` around it: (M, C, H, W) twice and (M, 4) -> (M, C, H, W)."""
    return torch.where(inside(boxes, *first.shape[2:])[:, None], second, first)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in a rectangle: (M, 4) of top, left, height, width -> (M, height, width) bool."""
    y = torch.arange(height, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    top, left, high, wide = boxes[:, :, None].unbind(1)  # (M, 1) each
    rows = (y >= top) & (y < top + high)  # (M, height)
    columns = (x >= left) & (x < left + wide)
    return rows[:, :, None] & columns[:, None, :]
