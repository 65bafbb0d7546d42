"""Which training clips have their label shown to a probe: all, k per class, or a share of each class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdctool.data.labels import ClipLabels
from kdctool.errors import UsageFault


@dataclass(frozen=True)
class Budget:
    """How many labels: `per_class` clips of each class, else a `share` of each (at least one)."""

    name: str
    """k10, share0.01 or all."""
    per_class: int = 0
    share: float = 1.0

    @property
    def is_all(self) -> bool:
        return not self.per_class and self.share == 1.0

    def draw(self, target: NDArray[np.bool_], uids: Sequence[str], draw: int) -> NDArray[np.int64]:
        """Rising places of the clips of draw number `draw`; target (N, classes).

        The clips that finetuning with this budget learns from when its seed is `draw`: a function of the uids, not of
        their order, and a smaller budget is part of a larger one. A class with fewer clips gives all it has; a clip
        drawn for one class shows all its labels.
        """
        if self.is_all:
            return np.arange(len(uids))
        clip, label = np.nonzero(target)
        labels = ClipLabels(clip, label, *target.shape)
        return np.flatnonzero(labels.few(list(uids), draw, self.per_class, self.share))


def budgets(text: str) -> tuple[Budget, ...]:
    """`k1,k10,0.01,all` -> budgets in that order, each once; UsageFault for anything else."""
    found: dict[str, Budget] = {}
    for word in text.split(","):
        budget = _budget(word.strip())
        found.setdefault(budget.name, budget)
    return tuple(found.values())


def _budget(word: str) -> Budget:
    if word == "all":
        return Budget("all")
    if re.fullmatch(r"k[1-9][0-9]*", word):
        return Budget(word, per_class=int(word[1:]))
    try:
        share = float(word)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageFault(
            f"option labels: '{word}' is no number of labels",
            "k10 is ten per class, 0.01 a hundredth of each class, all is all; for example labels=k1,k10,all",
        )
    return Budget("all") if share == 1 else Budget(f"share{share:g}", share=share)
