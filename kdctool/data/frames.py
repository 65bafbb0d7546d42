"""Frames to model input: Pillow's bicubic resize of the short side, centre crop, normalisation."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


def short_side(size: int, crop_pct: float) -> int:
    """Pixels that the short side of a frame is resized to before its centre of `size` is seen; rounded as by timm."""
    return math.floor(size / crop_pct)


def resize_crop(frame: np.ndarray, size: int, crop_pct: float = 1.0) -> np.ndarray:
    """Short side to `size` / `crop_pct`, then the centre: uint8 (H, W, 3) -> uint8 (size, size, 3).

    Sizes and offsets round as torchvision's Resize and CenterCrop do. A frame whose short side is right already is
    not resampled.
    """
    height, width = frame.shape[:2]
    short, long, wanted = min(height, width), max(height, width), short_side(size, crop_pct)
    if short != wanted:
        stretched = int(wanted * long / short)
        height, width = (wanted, stretched) if height <= width else (stretched, wanted)
        frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.array(frame[top : top + size, left : left + size])


def resized(frame: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The part `box` of a frame as a square: uint8 (H, W, 3) -> uint8 (size, size, 3)."""
    top, left, height, width = box
    part = frame[top : top + height, left : left + width]
    return np.array(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC))


def squeezed(frame: np.ndarray, size: int) -> np.ndarray:
    """The whole frame as a square whatever its aspect: uint8 (H, W, 3) -> uint8 (size, size, 3)."""
    return np.array(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))


def tile(frames: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Four frames as a 2 x 2 collage, uint8 (H, W, 3) each -> uint8 (2 * size, 2 * size, 3).

    Each is squeezed to size x size, whatever its aspect; they fill column by column, as in the KDC-MAE release.
    """
    if len(frames) != 4:
        raise ValueError(f"a collage has 4 frames, got {len(frames)}")
    small = [squeezed(frame, size) for frame in frames]
    return np.concatenate([np.concatenate(small[column : column + 2]) for column in (0, 2)], axis=1)


def normalise(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (..., C, H, W) in any memory layout -> contiguous float32: to 0-1, minus mean, over std, per channel."""
    centre, spread = (_channels(tuple(values), frames.device) for values in (mean, std))
    scaled = frames.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return scaled.div_(255).sub_(centre).div_(spread)


@lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1), made once per device: a GPU is waited for whenever numbers are sent from memory that is not pinned.

    Inference mode off: tensors made inside it could not take part in a later training step.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
