"""Score a model on the clips of a split and write results.json beside it."""

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdctool import __version__
from kdctool import recipe as recipes
from kdctool.errors import KdctoolError, UsageFault, quoted
from kdctool.files import read_json, write_bytes, write_json
from kdctool.progress import say
from kdctool.recipe import Expected, Recipe
from kdctool.recipe.objective import DISTILL
from kdctool.registry import load_plugins
from kdctool.shards import index as shard_index
from kdctool.stages import leakage, run_folder
from kdctool.stages.eval_data import EvalReader, choose_split, shards_of, with_workers
from kdctool.stages.fitting import choose_device
from kdctool.stages.load import EXPORT_FILE, Opened, open_model
from kdctool.tasks import Prepares, Result, Task, tasks

RESULTS, DETAILS = "results.json", "details.json"
PER_CLIP, ASSETS = "per_clip.npz", "assets.npz"


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
    options: dict[str, Any] | None = None,
    allow_overlap: bool = False,
) -> Evaluated:
    """Run `task` on the model of `source` (a run or an export; default: the newest finished run that fits).

    Reads the recipe's eval split; the training split only when `split` names it. DataFault when clips of the split
    occur in training, unless `allow_overlap`: then the result says how many.
    """
    opened = open_model(source or _newest(task, options), images=True)
    load_plugins(opened.recipe.plugins)
    scorer = make_task(task, options)
    model = subject(opened, scorer.wants, task)
    if isinstance(scorer, Prepares):
        scorer.prepare(model)
    if opened.is_image and "audio" in scorer.needs:
        raise UsageFault(
            f"{opened.path} is an image model, and {task} as asked needs sound",
            "--task probe --option present=video, --task diagnose, or --task classification after finetuning",
        )
    index = shard_index.load(shards_of(opened.recipe, shards))
    chosen = choose_split(opened.recipe, index, split)
    device = choose_device(device_name)
    clips = f"{len(chosen)} clips of split '{chosen.name}' in {index.folder}"
    say(f"scoring {opened.said()}")
    say(f"on {clips}, data sha256 {index.digest[:12]}, device {device}")
    recipe = with_workers(opened.recipe, workers)
    reader = EvalReader(scorer, recipe, index, device, batch_size, opened.labels, opened.multi_label)
    data = reader.read(chosen)
    overlap = leakage.check(chosen, data.uids, data.sources, opened, index, allow_overlap)
    data = replace(data, open_encoder=lambda path: _beside(opened, Path(path)).to(device))
    result = scorer.run(model.to(device), data)
    result = replace(result, notes=(*overlap, *data.notes, *result.notes))
    folder = out or opened.path / "eval" / task
    payload = results(result, recipe_digest(opened), index.digest, opened.weights_sha256)
    payload |= {"unfinished": opened.unfinished.removeprefix("unfinished: ")} if opened.unfinished else {}
    details = {
        "notes": list(result.notes),
        "options": options or {},
        "details": _plain(result.details),
        "model": {"path": str(opened.path), "kind": opened.kind, "step": opened.step},
        "data": {"shards": str(index.folder), "split": chosen.name},
        "device": str(device),
        "versions": {"kdctool": __version__, "torch": torch.__version__},
    }
    _write_arrays(folder, result)
    write_json(folder / DETAILS, details)
    write_json(folder / RESULTS, payload)
    trained = ("", opened.recipe.finetune.modality if opened.kind == "finetune" else "")
    expected = tuple(row for row in opened.recipe.expected if row.task == task and row.modality in trained)
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
    scorer = make_task(task)
    index = shard_index.load(Path(shards))
    device = choose_device(device_name)
    chosen = choose_split(recipe, index, None)
    data = EvalReader(scorer, recipe, index, device, batch_size, labels).read(chosen)
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


def make_task(name: str, options: dict[str, Any] | None = None) -> Task:
    """The task called `name`; UsageFault names an option it does not have."""
    task: Task = tasks.get(name).cls(tasks.options(name, options or {}))
    return task


def subject(opened: Opened, wants: str, task: str) -> Any:
    """The part of a model that a task scores; UsageFault where the model has none such."""
    if wants == "encoder":
        return opened.encoder
    if wants == "objective":
        return opened.objective()
    if opened.classifier is None:
        raise UsageFault(
            f"{opened.path} has no classifier, so it cannot be scored on {task}",
            f"kdctool finetune {quoted(opened.path)} makes one; or --task retrieval",
        )
    return opened.classifier


def _beside(opened: Opened, path: Path) -> torch.nn.Module:
    """The encoder of another run or export; UsageFault unless it reads clips as this one does."""
    other = open_model(path, images=True)
    if opened.is_image and not other.is_image:
        raise UsageFault(f"{path} hears, {opened.path} is an image model: only frames are read", "swap the two")
    for section, keys in (
        ("data", ("fbank_mean", "fbank_std", "image_mean", "image_std", "tiling", "crop_pct")),
        ("model", ("audio_frames", "mel_bins", "image_size")),
    ):
        for key in keys:
            mine, theirs = (getattr(getattr(one.recipe, section), key) for one in (opened, other))
            if mine != theirs:
                raise UsageFault(
                    f"{path} has {section}.{key} = {theirs}, {opened.path} has {mine}: they do not see the same clips",
                    "compare models that were trained on the same inputs",
                )
    return other.encoder


def _write_arrays(folder: Path, result: Result) -> None:
    """per_clip.npz and assets.npz, where the task gave any; without pickles, so anybody may open them."""
    for name in (PER_CLIP, ASSETS):
        (folder / name).unlink(missing_ok=True)
    if result.per_clip is not None:
        told = result.per_clip
        columns = {f"column.{name}": values for name, values in told.columns.items()}
        _save(folder / PER_CLIP, {"uids": np.array(told.uids), "sources": np.array(told.sources), **columns})
    if result.assets:
        _save(folder / ASSETS, result.assets)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    held = io.BytesIO()
    np.savez_compressed(held, **arrays)
    write_bytes(path, held.getvalue())


def _newest(task: str, options: dict[str, Any] | None) -> Path:
    """The newest finished run that `task` can score, told; UsageFault says what is lacking where there is none."""
    scorer = make_task(task, options)
    kinds, lacking = _FITTING.get(scorer.wants, (("pretrain", "finetune"), None))
    runs = run_folder.finished(kinds=kinds)
    if not runs and lacking and run_folder.finished():
        raise UsageFault(f"{lacking[0]} in {run_folder.RUNS}/, and {task} needs {lacking[1]}", lacking[2])
    # Where no run fits, the newest of them says by opening it why it does not.
    run = next((run for run in runs if _fits(run, scorer)), None) or run_folder.newest(kinds=kinds)
    say(f"no RUN was named: {run} is the newest finished one that {task} can score")
    return run


_FITTING = {
    "classifier": (
        ("finetune",),
        ("no finished finetuning", "a classifier", "kdctool finetune makes one from the newest pre-training"),
    ),
    "objective": (
        ("pretrain",),
        ("no finished pre-training", "the decoder of one", "name a run that has one, or make one: kdctool pretrain"),
    ),
}
"""What a task wants -> kinds of runs that have it, and what to say where there is none."""


def _fits(run: Path, scorer: Task) -> bool:
    """Whether a run is of a model that `scorer` can score, by its recipe."""
    try:
        objective = recipes.load(run / run_folder.RECIPE_FILE).objective
    except KdctoolError:
        return False
    if objective.student_sees_frames_alone and ("audio" in scorer.needs or scorer.wants == "objective"):
        return False
    decodes = objective.name != DISTILL and objective.reconstruction.weight > 0
    return decodes or scorer.wants != "objective"


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, wherever a task left one."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return _number(value) if isinstance(value, float) else value


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
