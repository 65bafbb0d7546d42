"""Score a model on the clips of a split and write results.json beside it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdctool import __version__
from kdctool.batch import Batch
from kdctool.data import decode
from kdctool.data.loader import eval_batches
from kdctool.data.whole import whole
from kdctool.errors import DataFault, UsageFault
from kdctool.files import read_json, write_json
from kdctool.progress import say
from kdctool.recipe import Expected, Recipe
from kdctool.registry import load_plugins
from kdctool.shards import index as shard_index
from kdctool.shards.index import Index, Split
from kdctool.shards.read import ShardReader
from kdctool.stages import run_folder
from kdctool.stages.fitting import choose_device, with_workers
from kdctool.stages.load import EXPORT_FILE, Opened, open_model
from kdctool.tasks import EvalData, Result, Task, tasks

RESULTS, DETAILS = "results.json", "details.json"


@dataclass(frozen=True)
class Evaluated:
    """A result, where it was written, and what was scored on what."""

    result: Result
    folder: Path
    model: str
    clips: str
    path: Path
    kind: str
    is_export: bool
    expected: tuple[Expected, ...]
    """Numbers the recipe expects of this task."""
    payload: dict[str, Any]
    """The contents of results.json."""


def run(
    source: Path | None,
    *,
    task: str,
    shards: Path | None = None,
    split: str | None = None,
    device_name: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    out: Path | None = None,
) -> Evaluated:
    """Run `task` on the model of `source` (a run or an export; default: the newest finished run that fits).

    Reads the recipe's eval split; the training split only when `split` names it.
    """
    opened = open_model(source or _newest(task))
    load_plugins(opened.recipe.plugins)
    scorer = _task(task)
    model = opened.classifier if scorer.wants == "classifier" else opened.encoder
    if model is None:
        raise UsageFault(
            f"{opened.path} has no classifier, so it cannot be scored on {task}",
            f"kdctool finetune {opened.path} makes one; or --task retrieval",
        )
    index = shard_index.load(Path(shards or opened.recipe.data.shards))
    chosen = _split(opened.recipe, index, split)
    device = choose_device(device_name)
    clips = f"{len(chosen)} clips of split '{chosen.name}' in {index.folder}"
    say(f"scoring {opened.said()}")
    say(f"on {clips}, data sha256 {index.digest[:12]}, device {device}")
    recipe = with_workers(opened.recipe, workers)
    data = _data(scorer, recipe, index, chosen, opened.labels, opened.multi_label, device, batch_size)
    result = scorer.run(model.to(device), data)
    folder = out or opened.path / "eval" / task
    payload = results(result, recipe_digest(opened), index.digest, opened.weights_sha256)
    details = {
        "notes": list(result.notes),
        "model": {"path": str(opened.path), "kind": opened.kind, "step": opened.step},
        "data": {"shards": str(index.folder), "split": chosen.name},
        "device": str(device),
        "versions": {"kdctool": __version__, "torch": torch.__version__},
    }
    write_json(folder / DETAILS, details)
    write_json(folder / RESULTS, payload)
    expected = tuple(row for row in opened.recipe.expected if row.task == task)
    is_export = not (opened.path / run_folder.RUN_FILE).exists()
    return Evaluated(result, folder, opened.said(), clips, opened.path, opened.kind, is_export, expected, payload)


def score(
    model: torch.nn.Module,
    task: str,
    recipe: Recipe,
    shards: Path,
    *,
    labels: tuple[str, ...] = (),
    device_name: str = "cpu",
    batch_size: int = 32,
) -> Result:
    """Run `task` on a model that is no run yet, for example an untrained one; nothing is written.

    `labels` names the columns of a classifier.
    """
    scorer = _task(task)
    index = shard_index.load(Path(shards))
    device = choose_device(device_name)
    chosen = _split(recipe, index, None)
    data = _data(scorer, recipe, index, chosen, labels, index.multi_label, device, batch_size)
    return scorer.run(model.to(device), data)


def results(result: Result, recipe: str, data: str, weights: str) -> dict[str, Any]:
    """The contents of results.json. A number that is not finite (an unknown bound, d' of a perfect AUC) is null."""
    return {
        "task": result.task,
        "protocol": result.protocol,
        "metrics": {
            name: {key: _number(getattr(metric, key)) for key in ("value", "low", "high", "chance")}
            for name, metric in result.metrics.items()
        },
        "n_scored": result.n_scored,
        "n_total": result.n_total,
        "missing": result.missing,
        "recipe_digest": recipe,
        "data_digest": data,
        "weights_sha256": weights,
    }


def recipe_digest(opened: Opened) -> str:
    """Digest of the settings the model was trained with, as its run.json or its export has it."""
    about = opened.path / run_folder.RUN_FILE
    return str(read_json(about if about.exists() else opened.path / EXPORT_FILE)["recipe_digest"])


def sources(split: Split) -> list[str]:
    """Source video of each clip; a clip whose description names none is its own."""
    reader = ShardReader(split)
    found = []
    for i in range(len(split)):
        about: dict[str, Any] = {}
        if "json" in split.members(i):
            about = decode.description(reader.read(i, ["json"])["json"], f"{split.path(i).name}: {split.key(i)}.json")
        found.append(str(about.get("source_id") or about.get("source") or split.key(i)))
    reader.close()
    return found


def _task(name: str) -> Task:
    task: Task = tasks.get(name).cls(tasks.options(name, {}))
    return task


def _data(
    scorer: Task,
    recipe: Recipe,
    index: Index,
    split: Split,
    labels: tuple[str, ...],
    multi_label: bool,
    device: torch.device,
    batch_size: int,
) -> EvalData:
    columns = _label_columns(labels, index) if "label" in scorer.needs else None
    num_clips = len(split)
    split, missing = whole(split)
    if not len(split):
        raise DataFault(f"no clip of split '{split.name}' has both sound and frames: {missing}")
    batches = eval_batches(index, split, recipe, device, batch_size, recipe.data.workers, labels=columns is not None)
    return EvalData(
        batches=batches if columns is None else _with_model_labels(batches, columns, len(labels)),
        uids=[split.key(i) for i in range(len(split))],
        sources=sources(split),
        n_total=num_clips,
        missing=missing,
        labels=labels,
        multi_label=multi_label or index.multi_label,
    )


def _newest(task: str) -> Path:
    if tasks.get(task).cls.wants == "encoder":
        return run_folder.newest()
    try:
        return run_folder.newest(kinds=("finetune",))
    except UsageFault as fault:
        raise UsageFault(
            f"no finished finetuning in {run_folder.RUNS}/, and {task} needs a classifier",
            "kdctool finetune makes one from the newest pre-training",
        ) from fault


def _split(recipe: Recipe, index: Index, asked: str | None) -> Split:
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


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
