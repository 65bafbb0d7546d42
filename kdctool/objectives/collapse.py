"""Is the embedding alive, and is every term: numbers that fall before a loss curve shows anything.

A term can be a thousandth of the loss and do nothing, and embeddings can shrink to a point or a line while every
loss goes down. `measure` gives the numbers, `Watch` reads the rows of a run and says so once.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DEAD_SHARE = 1e-4
"""A weighted term below this share of the loss is dead ..."""
DEAD_ROWS = 100
"""... when it stays there for so many rows of the log."""
COLLAPSED_RANK = 2.0
"""An effective rank below this is a point or a line ..."""
COLLAPSED_MEASUREMENTS = 10
"""... when it stays there for so many measurements."""


@torch.no_grad()
def measure(embeddings: dict[str, Tensor]) -> dict[str, float]:
    """Rank and uniformity of each embedding, alignment of audio with video and of the first view with the second.

    embeddings: (J, G, D) by name, the first view is measured. Nothing comes of fewer than two clips.
    """
    found: dict[str, float] = {}
    for name, views in embeddings.items():
        if views.shape[1] < 2:
            return {}
        found[f"rank/{name}"] = rank(views[0])
        found[f"uniformity/{name}"] = uniformity(views[0])
        if len(views) > 1:
            found[f"alignment/{name}_views"] = alignment(views[0], views[1])
    if "audio" in embeddings and "video" in embeddings:
        found["alignment/audio_video"] = alignment(embeddings["audio"][0], embeddings["video"][0])
    return found


def rank(x: Tensor) -> float:
    """Effective rank of (G, D), 1 to min(G, D): exp of the entropy of the singular values (RankMe, Garrido 2023)."""
    values = torch.linalg.svdvals(x.float())
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return math.exp(float(torch.special.entr(share).sum()))


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean squared distance of pairs on the unit sphere, (G, D) each: 0 = equal, 2 = unrelated (Wang & Isola 2020)."""
    return float((F.normalize(x.float(), dim=-1) - F.normalize(y.float(), dim=-1)).square().sum(dim=-1).mean())


def uniformity(x: Tensor) -> float:
    """Log of the mean of exp(-2 distance^2) on the unit sphere, (G, D): 0 = one point, lower = spread."""
    return float(torch.pdist(F.normalize(x.float(), dim=-1)).square().mul(-2).exp().mean().log())


class Watch:
    """Reads the rows that a run logs and warns once per term and embedding. A resumed run counts anew."""

    def __init__(self) -> None:
        self._dead: dict[str, int] = {}
        self._flat: dict[str, int] = {}

    def look(self, row: dict[str, float]) -> list[str]:
        """Warnings that this row gives rise to, each a line; mostly none."""
        warnings = []
        for key, value in row.items():
            kind, _, name = key.partition("/")
            if kind == "weighted" and self._lasts(
                self._dead, name, abs(value) < DEAD_SHARE * abs(row["loss"]), DEAD_ROWS
            ):
                warnings.append(
                    f"term {name} has been below {DEAD_SHARE:g} of the loss for {DEAD_ROWS} rows (now {value:.3g} of "
                    f"{row['loss']:.4g}): it does next to nothing. Raise its weight, or set it to 0 and save its cost; "
                    "log.gradient_norms_every shows what it does to the gradient"
                )
            if kind == "rank" and self._lasts(self._flat, name, value < COLLAPSED_RANK, COLLAPSED_MEASUREMENTS):
                warnings.append(
                    f"the {name} embedding has an effective rank of {value:.2f}: it has collapsed to a point or a "
                    "line. Lower optim.lr, raise objective.contrastive.weight, or look at the latest change of weights"
                )
        return warnings

    def _lasts(self, counts: dict[str, int], name: str, bad: bool, limit: int) -> bool:
        """Whether `bad` held for the `limit`-th time in a row just now."""
        counts[name] = counts.get(name, 0) + 1 if bad else 0
        return counts[name] == limit
