"""Divergence between the views' pooled joint latents (KDC-MAE).

The release calls it a Kullback-Leibler loss; it computes a Jensen-Shannon divergence of the latents made positive by
a shift and divided by their sum: no softmax, no temperature, no stop-gradient, no teacher. The release shifts by
the minimum over the local batch, so the value depends on how a batch is split; `sample` does not.
"""

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

Shift = Literal["global", "sample", "local"]

_TINY = 1e-12
"""Added to both arguments of the logarithm, as in the release."""


def as_distribution(pooled: Tensor, shift: Shift) -> Tensor:
    """Shift each view's latents to be non-negative and divide by their sum: (J, G, D) -> (J, G, D).

    `sample` shifts a clip by its own minimum; otherwise a view is shifted by the minimum over all clips given,
    and gradient flows through that minimum into the clip that holds it.
    """
    dims = (-1,) if shift == "sample" else (-2, -1)
    positive = pooled + pooled.amin(dim=dims, keepdim=True).abs()
    return positive / positive.sum(dim=-1, keepdim=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence over the last axis, in nats."""
    return ((p + _TINY) * ((p + _TINY) / (q + _TINY)).log()).sum(dim=-1)


def js(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence over the last axis, 0 to ln 2, symmetric."""
    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def between_views(pooled: Tensor, shift: Shift) -> Tensor:
    """Mean Jensen-Shannon divergence over all pairs of views: (J, G, D), J >= 2 -> (G,)."""
    views = as_distribution(pooled, shift).unbind(0)
    return torch.stack([js(p, q) for p, q in combinations(views, 2)]).mean(dim=0)
