"""The clips of an evaluation as a task reads them: which split, which labels, what is missing and why."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdctool.batch import Batch
from kdctool.data import decode
from kdctool.data.loader import eval_batches
from kdctool.data.whole import BOTH, whole
from kdctool.errors import DataFault, UsageFault
from kdctool.recipe import Recipe
from kdctool.shards.index import Index, Split
from kdctool.shards.read import ShardReader
from kdctool.tasks import Choice, Chooses, EvalData, Task


def choose_split(recipe: Recipe, index: Index, asked: str | None) -> Split:
    """The split that was asked for, else the recipe's eval_split; never the training split by accident."""
    data = recipe.data
    if asked is None and data.eval_split == data.train_split:
        raise UsageFault(
            f"the recipe's eval_split is its training split '{data.train_split}'",
            f"--split {data.train_split} if you mean to score training clips; kdctool shard holds out a test split",
        )
    chosen = index.split(asked or data.eval_split)
    if not len(chosen):
        there = ", ".join(f"{name} ({count})" for name, count in index.splits.items() if count)
        raise DataFault(
            f"split '{chosen.name}' of {index.folder} is empty", f"--split one of: {there or 'none has clips'}"
        )
    return chosen


@dataclass(frozen=True)
class EvalReader:
    """Reads what a task needs of clips in shards."""

    scorer: Task
    recipe: Recipe
    index: Index
    device: torch.device
    batch_size: int
    labels: tuple[str, ...] = ()
    """The model's label columns; a model without any takes those of the shards."""
    multi_label: bool = False
    """Whether the model knows several labels per clip; if not, the shards may say so."""

    def read(self, split: Split) -> EvalData:
        """The clips of `split`, and of the training split where the scorer needs that."""
        train = None
        if "train" in self.scorer.needs:
            train = self._clips(self.index.split(self.recipe.data.train_split))
        return self._clips(split, self.scorer if isinstance(self.scorer, Chooses) else None, train)

    def _clips(self, split: Split, chooses: Chooses | None = None, train: EvalData | None = None) -> EvalData:
        labels, data = self.labels or self.index.labels, self.recipe.data
        columns = _label_columns(labels, self.index) if "label" in self.scorer.needs else None
        told = abouts(split)
        keys = [split.key(i) for i in range(len(split))]
        videos = [source_of(about, key) for about, key in zip(told, keys, strict=True)]
        choice = chooses.choose(keys, videos, told) if chooses else Choice(np.ones(len(split), dtype=bool))
        parts = [part for part in BOTH if part in self.scorer.needs] or BOTH
        split, lacking = whole(split.subset(choice.keep), parts)
        if not len(split):
            sought = "both sound and frames" if len(parts) > 1 else {"audio": "sound", "video": "frames"}[parts[0]]
            raise DataFault(f"no clip of split '{split.name}' has {sought}: {lacking}", "try another --split")
        read = {split.key(i) for i in range(len(split))}
        kept = [place for place, key in enumerate(keys) if key in read]
        batches = self._batches(split, parts, with_labels=columns is not None)
        return EvalData(
            batches=batches if columns is None else _with_model_labels(batches, columns, len(labels)),
            uids=[keys[place] for place in kept],
            sources=[videos[place] for place in kept],
            n_total=int(choice.keep.sum()) + sum(choice.missing.values()),
            missing={**choice.missing, **lacking},
            labels=labels,
            multi_label=self.multi_label or self.index.multi_label,
            abouts=[told[place] for place in kept] if "about" in self.scorer.needs else [],
            train=train,
            input_mean=data.image_mean,
            input_std=data.image_std,
            fbank_mean=data.fbank_mean,
            fbank_std=data.fbank_std,
            collages=data.tiling,
            notes=choice.notes,
        )

    def _batches(self, split: Split, parts: Collection[str], *, with_labels: bool) -> Iterator[Batch]:
        return eval_batches(
            self.index,
            split,
            self.recipe,
            self.device,
            self.batch_size,
            self.recipe.data.workers,
            labels=with_labels,
            all_frames=self.scorer.frames == "all",
            parts=parts,
        )


def abouts(split: Split) -> list[dict[str, Any]]:
    """The description (JSON member) of each clip; {} where a clip has none."""
    return list(described(split))


def described(split: Split) -> Iterator[dict[str, Any]]:
    """`abouts` one by one, for splits that are too long to hold."""
    reader = ShardReader(split)
    for i in range(len(split)):
        about: dict[str, Any] = {}
        if "json" in split.suffixes(i):
            about = decode.description(reader.read(i, ["json"])["json"], f"{split.path(i).name}: {split.key(i)}.json")
        yield about
    reader.close()


def source_of(about: dict[str, Any], key: str) -> str:
    """Source video of a clip; one whose description names none is its own."""
    return str(about.get("source_id") or about.get("source") or key)


def sources(split: Split) -> list[str]:
    """Source video of each clip of a split."""
    return [source_of(about, split.key(i)) for i, about in enumerate(abouts(split))]


def shards_of(recipe: Recipe, shards: Path | None) -> Path:
    """The folder of shards that was asked for, else the recipe's."""
    return Path(shards or recipe.data.shards)


def with_workers(recipe: Recipe, workers: int | None) -> Recipe:
    """The recipe with another number of loader processes, which no result depends on."""
    if workers is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": workers})})


def _label_columns(known: tuple[str, ...], index: Index) -> torch.Tensor:
    """For each label of the shards, its column in the classifier."""
    if not index.labels:
        raise DataFault(f"{index.folder} has no labels", "kdctool shard OUT SHARDS --labels labels.csv")
    unknown = [label for label in index.labels if label not in known]
    if unknown:
        raise DataFault(
            f"{index.folder} has {len(unknown)} labels that the classifier does not know, first '{unknown[0]}'",
            f"it knows {len(known)}: {', '.join(known[:5])}" + (" ..." if len(known) > 5 else ""),
        )
    return torch.tensor([known.index(label) for label in index.labels])


def _with_model_labels(batches: Iterator[Batch], columns: torch.Tensor, num_classes: int) -> Iterator[Batch]:
    for batch in batches:
        label = batch["label"]
        widened = label.new_zeros(len(label), num_classes)
        widened[:, columns.to(label.device)] = label
        yield {**batch, "label": widened}
