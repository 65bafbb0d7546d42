"""What representations look like: similarity of two of them (CKA) and how many directions tokens use. float64."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdctool.tasks.intervals import LEVEL
from kdctool.tasks.metrics import Floats

FEWEST = 4
"""Clips that the debiased estimate needs."""
TOP = 5
_HALF_WIDTH = NormalDist().inv_cdf((1 + LEVEL) / 2)


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of features (N, D1) and (N, D2) of the same N clips; debiased, so independent features have about 0.

    1 under rotation, scaling and shift of either. NaN for fewer than 4 clips and where a side does not vary.
    The plain estimate would approach 1 for anything once D exceeds N.
    """
    return float(cka_matrix([x], [y])[0, 0])


def cka_matrix(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Floats:
    """(rows, columns) CKA of every pair; each (N, D) over the same clips."""
    left = torch.stack([_unit_gram(x) for x in rows])
    right = left if columns is rows else torch.stack([_unit_gram(y) for y in columns])
    return cast(Floats, (left @ right.T).cpu().numpy())


def _unit_gram(x: Tensor) -> Tensor:
    """(N, D) -> (N * N,): the U-centred Gram matrix with unit norm; NaN where there is nothing to compare.

    The inner product of two U-centred matrices is the unbiased HSIC (Song et al. 2012) times N (N - 3).
    """
    num = len(x)
    centred = x.double() - x.double().mean(0)
    gram = centred @ centred.T
    size = float(x.double().square().sum())
    gram.fill_diagonal_(0.0)
    nothing = torch.full((num * num,), math.nan, dtype=torch.float64, device=x.device)
    if num < FEWEST:
        return nothing
    row = gram.sum(1) / (num - 2)
    gram = gram - row[:, None] - row[None] + gram.sum() / ((num - 1) * (num - 2))
    gram.fill_diagonal_(0.0)
    norm = gram.norm()
    # Rounding of float32 features that are all alike is not variation.
    return nothing if float(norm) <= 1e-12 * size else (gram / norm).flatten()


def cka_interval(x: Tensor, y: Tensor, sources: Sequence[str]) -> tuple[float, float]:
    """95 % interval of `cka` by leaving out one source video at a time (jackknife); NaN where that says nothing.

    Drawing clips twice, as the bootstrap does, would make pairs of equal clips and raise the estimate.
    """
    names, member = np.unique(np.asarray(sources), return_inverse=True)
    groups = len(names)
    kept = [torch.from_numpy(member != group).to(x.device) for group in range(groups)]
    left_out = np.array([cka(x[rows], y[rows]) for rows in kept])
    if groups < 2 or not np.isfinite(left_out).all():
        return math.nan, math.nan
    spread = math.sqrt((groups - 1) / groups * float(np.square(left_out - np.mean(left_out)).sum()))
    value = cka(x, y)
    return value - _HALF_WIDTH * spread, value + _HALF_WIDTH * spread


def spectrum(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, D) -> shares (B, 5) of the largest 1, 2, .. 5 singular values in the sum of all, and effective rank (B,).

    Tokens are L2-normalised first, per clip. The effective rank is exp of the entropy of the shares (Roy and
    Vetterli 2007): 1 when all tokens point one way, min(L, D) when none prefers a direction.
    """
    unit = F.normalize(tokens.double(), dim=-1)
    gram = unit @ unit.transpose(1, 2) if unit.shape[1] <= unit.shape[2] else unit.transpose(1, 2) @ unit
    square = torch.linalg.eigvalsh(gram).flip(-1)  # Descending.
    # What eigenvalues of one size lose to rounding would be a crowd of small singular values.
    floor = square[:, :1] * square.shape[1] * torch.finfo(torch.float64).eps * 4
    single = torch.where(square > floor, square, 0.0).sqrt()
    share = single / single.sum(-1, keepdim=True)
    rank = torch.special.entr(share).sum(-1).exp()
    top = F.pad(share[:, :TOP].cumsum(-1), (0, max(0, TOP - share.shape[1])), value=1.0)
    return top.clamp(max=1.0), rank
