"""What attention maps look like: head distance, mutual information, entropy, cross-modal mass. Pure functions.

An attention map is (..., Q, K) after softmax: rows are queries and sum to 1. Everything is computed per image and
head and averaged over queries only, because mutual information of an averaged map is not the average of it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdctool.models.streams import split_qkv

NMI_EPSILON = 1e-8
"""Added to every weight before the rows are made to sum to 1 again, as Park et al. (2023) do."""


def weights_of(qkv: Tensor, attention: Any) -> Tensor:
    """(B, L, 3 * D) output of `attention.qkv` -> (B, heads, L, L) softmax(q k^T / sqrt(d)), float32.

    q and k pass the layer's own q_norm and k_norm where it has them.
    """
    parts = split_qkv(qkv, heads_of(attention))
    q = getattr(attention, "q_norm", nn.Identity())(parts.q).float()
    k = getattr(attention, "k_norm", nn.Identity())(parts.k).float()
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)


def heads_of(attention: Any) -> int:
    """Heads of an attention layer of ours or of timm."""
    return int(attention.num_heads if hasattr(attention, "num_heads") else attention.heads)


def without_prefix(attention: Tensor, prefix: int, renormalise: bool = True) -> Tensor:
    """Drop `prefix` leading tokens (class, registers) from queries and keys; rows sum to 1 again unless told."""
    kept = attention[..., prefix:, prefix:]
    return kept / kept.sum(-1, keepdim=True) if renormalise and prefix else kept


def token_distance(grid: tuple[int, int], row_step: float, column_step: float) -> Tensor:
    """(L, L) Euclidean distance between tokens of a row-major `grid` whose rows and columns lie a step apart."""
    rows, columns = grid
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns) * row_step  # (L,)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows) * column_step  # (L,)
    return torch.hypot(row[:, None] - row, column[:, None] - column)


def head_distance(attention: Tensor, distance: Tensor) -> Tensor:
    """(..., Q, K) and (Q, K) -> (...): mean over queries of the expected distance to what they attend to."""
    return (attention * distance).sum(-1).mean(-1)


def normalised_mutual_information(attention: Tensor, epsilon: float = NMI_EPSILON) -> Tensor:
    """(..., Q, K) -> (...) in 0-1: how much a key tells about its query, queries being equally likely.

    I(q; k) / sqrt(H(q) H(k)). 0: all queries share one row of attention. 0 too where H(k) or H(q) is 0.
    """
    rows = attention + epsilon
    rows = rows / rows.sum(-1, keepdim=True)  # p(k | q)
    key = rows.mean(-2, keepdim=True)  # p(k)
    information = (rows * (rows.log() - key.log())).sum(-1).mean(-1).clamp(min=0.0)
    entropy = torch.special.entr(key).sum(-1).squeeze(-1)
    scale = (entropy * math.log(attention.shape[-2])).clamp(min=0.0).sqrt()
    # NaN is kept: a broken model must not look like a collapsed one.
    return torch.where(scale == 0, torch.zeros_like(scale), information / scale)


def entropy_share(attention: Tensor) -> Tensor:
    """(..., Q, K) -> (...) in 0-1: mean entropy of the rows over log K, which uniform attention has."""
    return torch.special.entr(attention).sum(-1).mean(-1) / math.log(max(2, attention.shape[-1]))


def modality_blocks(attention: Tensor, num_audio: int) -> dict[str, Tensor]:
    """The blocks of a joint map whose first `num_audio` tokens are audio: aa, av, va, vv (queries first, then keys).

    Not normalised: the row sums of av are the audio queries' attention to video.
    """
    audio, video = slice(None, num_audio), slice(num_audio, None)
    sides = {"a": audio, "v": video}
    return {q + k: attention[..., sides[q], sides[k]] for q in "av" for k in "av"}


def block_mass(block: Tensor) -> Tensor:
    """(..., Q, K) -> (...): mean share of attention that the queries give to these keys."""
    return block.sum(-1).mean(-1)


def block_information(block: Tensor) -> Tensor:
    """Mutual information within a block, its rows made to sum to 1; a row that gives the block nothing is uniform."""
    total = block.sum(-1, keepdim=True)
    rows = torch.where(total == 0, torch.full_like(block, 1 / block.shape[-1]), block / total)
    return normalised_mutual_information(rows)
