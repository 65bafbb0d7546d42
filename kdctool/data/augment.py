"""Training-time augmentation, a pure function of the clip's own seed."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdctool.data.frames import Box
from kdctool.data.noise import uniform
from kdctool.data.patches import draw_cut
from kdctool.recipe import Finetune
from kdctool.seeds import fold

_TRIES = 10
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))


class Mix(NamedTuple):
    """What a clip is mixed with."""

    partner: int
    """Place in the split; every clip is as likely, the clip itself too."""
    weight: float
    """Of the first clip; the partner has the rest."""
    seed: int
    """Of what is random about the partner: which of its frames is shown."""
    box: Box = (0, 0, 0, 0)
    """Part of the picture that the partner's replaces (cutmix); empty where the two are blended."""


def draw_mix(seed: int, options: Finetune, clips: int, side: int) -> Mix | None:
    """Whether and with what the clip of this seed, of a split of `clips`, is mixed; pictures are `side` pixels square.

    timm's Mixup draws once per batch and mixes a clip with one of its batch; here every clip draws for itself, from the
    whole split, so that neither ranks nor micro batches decide about it.
    """
    if not options.mixup:
        return None
    rng = np.random.default_rng(fold(seed, "mix"))
    if rng.random() >= options.mixup:
        return None
    alpha = options.mixup_alpha
    found = Mix(int(rng.integers(clips)), float(rng.beta(alpha, alpha)), fold(seed, "mix partner"))
    if fold(seed, "cut or blend") >= options.cutmix * 2**63:
        return found
    box, weight = draw_cut(seed, options.cutmix_alpha, side, side)
    return found._replace(box=box, weight=weight)


def draw_crop(seed: int, height: int, width: int, scale: tuple[float, float]) -> Box:
    """The part of a frame of height x width that the clip of this seed shows, by torchvision's RandomResizedCrop.

    Its area is a share from `scale` of the frame's, its width over its height lies in 3/4 to 4/3, uniform in the
    logarithm. Where ten draws do not fit into the frame, the largest part at its centre whose aspect is allowed.
    """
    rng = np.random.default_rng(fold(seed, "crop"))
    for _ in range(_TRIES):
        area, aspect = height * width * rng.uniform(*scale), math.exp(rng.uniform(*_LOG_ASPECT))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    narrow, wide = (math.exp(bound) for bound in _LOG_ASPECT)
    w, h = min(width, round(height * wide)), min(height, round(width / narrow))
    return (height - h) // 2, (width - w) // 2, max(1, h), max(1, w)


def draw_flip(seed: int) -> bool:
    """Whether the clip of this seed is mirrored: every other one."""
    return bool(fold(seed, "flip") % 2)


def mix(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """weight * first + (1 - weight) * second: (M, ...) twice and (M,) float64 -> (M, ...)."""
    shape = (-1, *[1] * (first.ndim - 1))
    mine, theirs = weight.to(first.dtype).view(shape), (1 - weight).to(first.dtype).view(shape)
    return mine * first + theirs * second


def spec_aug(fbank: Tensor, seeds: Tensor, freq_mask: int, time_mask: int, blank: float) -> Tensor:
    """SpecAug as torchaudio's two maskings do it: one band of mel bins and one stretch of frames become `blank`.

    fbank (B, T, F), seeds (B,) int64. Widths are integers from [0, freq_mask) and [0, time_mask); 0 masks nothing.
    """
    _, frames, bins = fbank.shape
    draws = uniform(~seeds, 4)  # Another key than the noise has, so the two are independent.
    band = _stretch(draws[:, :2], freq_mask, bins)  # (B, F)
    stretch = _stretch(draws[:, 2:], time_mask, frames)  # (B, T)
    return fbank.masked_fill(band[:, None, :] | stretch[:, :, None], blank)


def _stretch(draws: Tensor, widest: int, size: int) -> Tensor:
    """Which of `size` places are masked, (B, 2) draws -> (B, size) bool; the rounding is torchaudio's."""
    width = draws[:, :1] * widest
    start = (draws[:, 1:] * (size - width)).floor()
    place = torch.arange(size, device=draws.device)
    return (place >= start) & (place < start + width.floor())


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
