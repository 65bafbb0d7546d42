"""Divergence between the views' pooled latents (KDC-MAE).

The release calls it a Kullback-Leibler loss; it computes a Jensen-Shannon divergence of the latents made positive by
a shift and divided by their sum: no softmax, no temperature, no stop-gradient, no teacher. The release shifts by
the minimum over the local batch, so the value depends on how a batch is split; `sample` does not. The paper's words
(Kullback-Leibler, softmax, a teacher) are options.
"""

from itertools import combinations, permutations
from typing import Literal

import torch
from torch import Tensor

from kdctool.recipe import SelfDistillation

Shift = Literal["global", "sample", "local"]
Divergence = Literal["js", "kl", "kl_reverse", "sym_kl"]
Stop = Literal["none", "first", "second"]

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


def divergence(p: Tensor, q: Tensor, kind: Divergence) -> Tensor:
    """Divergence over the last axis: kl is KL(p || q), kl_reverse is KL(q || p), sym_kl the mean of both."""
    if kind == "js":
        return js(p, q)
    if kind == "kl":
        return kl(p, q)
    if kind == "kl_reverse":
        return kl(q, p)
    return (kl(p, q) + kl(q, p)) / 2


def between_pairs(views: Tensor, kind: Divergence = "js", stop: Stop = "none") -> Tensor:
    """Mean divergence over all pairs of views, earlier first; `stop` makes one of a pair a constant.

    views: distributions (J, G, D), J >= 2 -> (G,).
    """
    found = []
    for p, q in combinations(views.unbind(0), 2):
        first = p.detach() if stop == "first" else p
        second = q.detach() if stop == "second" else q
        found.append(divergence(first, second, kind))
    return torch.stack(found).mean(dim=0)


def between_views(pooled: Tensor, shift: Shift) -> Tensor:
    """The released term: pooled latents (J, G, D), J >= 2 -> (G,)."""
    return between_pairs(as_distribution(pooled, shift))


def from_teacher(teacher: Tensor, student: Tensor, kind: Divergence) -> Tensor:
    """Mean divergence (teacher's view, student's other view): distributions (J, G, D), J >= 2 -> (G,)."""
    pairs = permutations(range(len(student)), 2)
    return torch.stack([divergence(teacher[i], student[j], kind) for i, j in pairs]).mean(dim=0)


class SelfDistillationTerm:
    """The term, over the joint latents alone or over those of each modality too."""

    def __init__(self, options: SelfDistillation) -> None:
        self.options = options
        self.passes = ("joint", "audio", "video") if options.per_modality else ("joint",)
        self.has_teacher = options.stop_gradient == "teacher"
        taught = tuple(f"teacher_{name}" for name in self.passes) if self.has_teacher else ()
        self.needs = (*self.passes, *taught)
        """Pooled latents (J, G, D) that a call reads."""
        self.couples = options.distribution == "shifted" and options.shift == "global"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms; the joint one has no suffix."""
        return tuple("self_distillation" + ("" if name == "joint" else f"_{name}") for name in self.passes)

    def __call__(self, pooled: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Raw terms, means over clips and pairs; there are no meters."""
        return {term: self._one(name, pooled).mean() for term, name in zip(self.names, self.passes, strict=True)}, {}

    def _one(self, name: str, pooled: dict[str, Tensor]) -> Tensor:
        student, options = self.distribution(pooled[name]), self.options
        if options.stop_gradient == "teacher":
            teacher = self.distribution(pooled[f"teacher_{name}"].detach())
            return from_teacher(teacher, student, options.divergence)
        return between_pairs(student, options.divergence, options.stop_gradient)

    def distribution(self, pooled: Tensor) -> Tensor:
        """Latents (J, G, D) as distributions over their channels."""
        if self.options.distribution == "softmax":
            return (pooled / self.options.temperature).softmax(dim=-1)
        return as_distribution(pooled, self.options.shift)
