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
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def uniform(keys: Tensor, count: int) -> Tensor:
    """float32 (B, count) in [0, 1) from keys (B,) int64; equal keys give equal rows."""
    place = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * _GOLDEN
    if keys.device.type == "cpu" and len(keys):  # a row at a time fits into the processor's cache
        return torch.stack([_hashed(place + key) for key in keys])
    return _hashed(keys[:, None] + place)


def _hashed(x: Tensor) -> Tensor:
    """int64 -> float32 in [0, 1); overwrites x."""
    for bits, factor in ((30, _MIX_1), (27, _MIX_2)):
        x ^= _logical_shift(x, bits)
        x *= factor
    x ^= _logical_shift(x, 31)
    return _logical_shift(x, 40).to(torch.float32).mul_(2.0**-24)
