"""The labels of a whole split: what balanced sampling weighs by, and which clips a few-shot training sees."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdctool.dist import gather_rows, world
from kdctool.errors import DataFault
from kdctool.progress import bar
from kdctool.seeds import fold
from kdctool.shards.about import MEMBERS, about
from kdctool.shards.index import Index, Split
from kdctool.shards.read import ShardReader


@dataclass(frozen=True)
class ClipLabels:
    """Which clip has which label, a pair per entry; a clip may have several labels, or none."""

    clip: npt.NDArray[np.int64]
    """(M,) places in the split, ascending."""
    label: npt.NDArray[np.int64]
    """(M,) places in the label list."""
    num_clips: int
    num_classes: int

    def counts(self) -> npt.NDArray[np.int64]:
        """Clips of each class, (classes,)."""
        return np.bincount(self.label, minlength=self.num_classes)

    def balancing(self) -> npt.NDArray[np.float64]:
        """CAV-MAE's sampling weights, (clips,): the sum over a clip's labels of 1000 / (clips of the class + 0.01)."""
        of_class = 1000.0 / (self.counts() + 0.01)
        weights = np.bincount(self.clip, weights=of_class[self.label], minlength=self.num_clips)
        return weights.astype(np.float64)  # Already is, unless no clip has a label.

    def subset(self, keep: npt.NDArray[np.bool_]) -> "ClipLabels":
        """The labels of the clips for which `keep`, (clips,), is true; counted through anew."""
        ours = keep[self.clip]
        place = np.cumsum(keep) - 1
        return ClipLabels(place[self.clip[ours]], self.label[ours], int(keep.sum()), self.num_classes)

    def few(self, keys: list[str], seed: int, per_class: int = 0, share: float = 1.0) -> npt.NDArray[np.bool_]:
        """Which clips (clips,) a few-shot training sees: of each class the first ones of an order that the seed gives.

        The order depends on a clip's key and the seed alone, so more clips per class contain fewer. A clip of several
        labels counts for each of them, so classes that accompany others may end up with more.
        """
        counts = self.counts()
        wanted = np.full(self.num_classes, per_class)
        if not per_class:
            # The small number takes back what 0.07 * 100 is above 7.
            wanted = np.array([max(1, math.ceil(share * count - 1e-9)) for count in counts.tolist()])
        score = np.array([fold(seed, "few-shot", key) for key in keys], dtype=np.int64)
        ranked = np.lexsort((score[self.clip], self.label))
        place = np.arange(len(ranked)) - np.repeat(np.cumsum(counts) - counts, counts)
        keep = np.zeros(self.num_clips, dtype=bool)
        keep[self.clip[ranked][place < wanted[self.label[ranked]]]] = True
        return keep


def read_labels(index: Index, split: Split) -> ClipLabels:
    """The labels of every clip of the split, from the clips' descriptions: one small read per clip.

    Called on all ranks alike: each reads its share of the clips, and all get the whole.
    """
    known = {name: place for place, name in enumerate(index.labels)}
    rank, ranks = world()
    share = range(len(split) * rank // ranks, len(split) * (rank + 1) // ranks)
    reader = ShardReader(split)
    clip: list[int] = []
    label: list[int] = []
    with bar("labels", len(share), "clips") as progress:
        for place in share:
            where = f"{split.path(place).name}: clip {split.key(place)}"
            described = [name for name in MEMBERS if name in split.suffixes(place)]
            found = columns(about(reader.read(place, described), where), known, where)
            clip += [place] * len(found)
            label += found
            progress.advance(1)
    reader.close()
    pairs = gather_rows(torch.tensor([clip, label], dtype=torch.int64).T).T.numpy()  # (2, M)
    return ClipLabels(pairs[0], pairs[1], len(split), len(known))


def columns(about: dict[str, Any], known: Mapping[str, int], where: str) -> list[int]:
    """Places in the label list of a clip's labels; DataFault for a label that is not in it."""
    found = dict.fromkeys(about.get("labels", []))
    for name in found:
        if name not in known:
            raise DataFault(f"{where} has label '{name}', which is not in the label list of the shards' index")
    return [known[name] for name in found]
