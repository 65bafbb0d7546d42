"""Training-time augmentation, a pure function of the clip's own seed."""

import torch
from torch import Tensor

from kdctool.data.noise import uniform


def noise_and_roll(fbank: Tensor, seeds: Tensor) -> Tensor:
    """CAV-MAE's noise augmentation of normalised filter banks (spec: released data loader).

    fbank (B, T, F), seeds (B,) int64. Adds U[0, 1) per element times u / 10 with one u ~ U[0, 1) per clip,
    then rolls along time by an integer in [-T, T).
    """
    clips, frames, bins = fbank.shape
    draws = uniform(seeds, frames * bins + 2)
    noise = draws[:, 2:].unflatten(1, (frames, bins))
    fbank = torch.addcmul(fbank, noise, (draws[:, 0] / 10)[:, None, None])
    shift = (draws[:, 1] * 2 * frames).floor().to(torch.int64) - frames  # (B,)
    source = (torch.arange(frames, device=fbank.device)[None] - shift[:, None]) % frames  # (B, T)
    return fbank[torch.arange(clips, device=fbank.device)[:, None], source]
