"""Sounds that point nowhere: what a model makes of them is what it makes of the picture alone."""

import torch
from torch import Tensor

from kdctool.data.fbank import log_mel, model_input
from kdctool.seeds import fold
from kdctool.tasks import EvalData

LEVEL = 0.1
"""Root mean square of the noise where full scale is 1: as loud as speech."""
_SHIFT, _SIZE = 160, 400
"""Samples of a frame's step and of its window at 16 kHz."""


def silence(like: Tensor, data: EvalData) -> Tensor:
    """Digital silence as model input, (1, T, F) for a batch (B, T, F)."""
    return _as_input(torch.zeros(1, _samples(like)), like, data)


def white_noise(like: Tensor, uids: list[str], seed: int, data: EvalData) -> Tensor:
    """Gaussian noise of each clip as model input (B, T, F), drawn from its uid alone."""
    waves = []
    for uid in uids:
        rng = torch.Generator().manual_seed(fold(seed, "noise", uid))
        waves.append(torch.randn(_samples(like), generator=rng) * LEVEL)
    return _as_input(torch.stack(waves), like, data)


def _samples(like: Tensor) -> int:
    return (like.shape[1] - 1) * _SHIFT + _SIZE


def _as_input(waves: Tensor, like: Tensor, data: EvalData) -> Tensor:
    fbank = log_mel(waves, num_mel_bins=like.shape[2])
    return model_input(fbank, like.shape[1], data.fbank_mean, data.fbank_std).to(like.device)
