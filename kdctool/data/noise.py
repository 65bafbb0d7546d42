"""Uniform numbers as a function of (key, index), for a whole batch at once and alike on every device.

A generator per clip would be a loop; a generator per batch would make a clip's augmentation depend on its
neighbours. The hash is SplitMix64's output function (Steele et al., OOPSLA 2014).
"""

import torch
from torch import Tensor


def _wrap(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant


_GOLDEN = _wrap(0x9E3779B97F4A7C15)
_MIX_1 = _wrap(0xBF58476D1CE4E5B9)
_MIX_2 = _wrap(0x94D049BB133111EB)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniform(keys: Tensor, count: int) -> Tensor:
    """float32 (B, count) in [0, 1) from keys (B,) int64; equal keys give equal rows."""
    place = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    x = keys[:, None] + place * _GOLDEN  # (B, count)
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    x = x ^ _logical_shift(x, 31)
    return _logical_shift(x, 40).to(torch.float32) * 2.0**-24
