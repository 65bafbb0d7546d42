"""Nearest neighbours by cosine: which classes do the most similar labelled clips have?"""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
"""DINO's: a neighbour votes with exp(cosine / 0.07)."""
_TOLERANCE = 1e-6
"""Cosines of float32 features this close are equal."""
_CELLS = 1 << 24


def votes(
    queries: Tensor,
    memory: Tensor,
    target: Tensor,
    k: int,
    *,
    temperature: float | None = TEMPERATURE,
    is_same: bool = False,
) -> Tensor:
    """(Q, classes) float64: the share of votes per class of the k nearest of `memory` (N, D), labels `target` (N, C).

    Neighbours that tie for the last places share them, so the order of the memory decides nothing. `temperature` None:
    one vote each. `is_same`: query i is clip i of the memory, and does not vote for itself.
    """
    k = min(k, len(memory) - is_same)
    near, known = F.normalize(queries.double(), dim=-1), F.normalize(memory.double(), dim=-1)
    hits = target.to(memory.device, torch.float64)
    step = max(1, _CELLS // max(1, len(memory), k * hits.shape[1]))
    parts = []
    for first in range(0, len(near), step):
        cosine = near[first : first + step] @ known.T  # (q, N)
        if is_same:
            row = torch.arange(len(cosine), device=cosine.device)
            cosine[row, first + row] = -torch.inf
        parts.append(_votes(cosine, hits, k, temperature))
    return torch.cat(parts)


def _votes(cosine: Tensor, hits: Tensor, k: int, temperature: float | None) -> Tensor:
    # One more than k tells whether others tie with the last.
    value, place = cosine.topk(min(k + 1, cosine.shape[1]), dim=1)
    last = value[:, k - 1 : k]
    share = torch.ones_like(value[:, :k])
    found = torch.einsum("qk,qkc->qc", _weights(value[:, :k], share, temperature), hits[place[:, :k]])
    if value.shape[1] > k:
        tied = (value[:, k] >= last[:, 0] - _TOLERANCE).nonzero()[:, 0]
        row, edge = cosine[tied], last[tied]
        above, equal = row > edge + _TOLERANCE, (row - edge).abs() <= _TOLERANCE
        share = above + equal * (k - above.sum(1, keepdim=True)) / equal.sum(1, keepdim=True).clamp(min=1)
        found[tied] = _weights(row, share.double(), temperature) @ hits
    return found / found.sum(1, keepdim=True).clamp(min=1e-12)


def _weights(cosine: Tensor, share: Tensor, temperature: float | None) -> Tensor:
    if temperature is None:
        return share
    # Relative to the nearest: the votes are normalised anyway, and exp stays in range.
    return share * ((cosine - cosine.amax(1, keepdim=True)) / temperature).exp()
