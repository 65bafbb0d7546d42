"""What a study will run: whole recipes with lengths and FLOPs, its cells, and the protocol that guards a resume."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdctool.data.whole import BOTH, whole
from kdctool.errors import DataFault, UsageFault
from kdctool.files import read_json, write_json
from kdctool.recipe import Recipe, changed_keys, result_keys
from kdctool.recipe.arms import resolve, with_length
from kdctool.recipe.objective import DISTILL
from kdctool.recipe.presets import PRESETS
from kdctool.recipe.study import Study, load_study
from kdctool.shards import index as shard_index
from kdctool.stages import pretrain
from kdctool.stages.evaluate import make_task
from kdctool.train.flops import per_clip

STUDIES = Path("studies")
PROTOCOL, RESULTS = "protocol.json", "results.json"


@dataclass(frozen=True)
class PlannedArm:
    """One arm as it will be trained, whatever the seed."""

    name: str
    title: str
    recipe: Recipe
    steps: int
    flops_per_clip: float
    """Forward and backward, counted; 0 for an objective of a plugin."""

    @property
    def flops(self) -> float:
        """Of the whole pre-training."""
        return self.flops_per_clip * self.recipe.training.global_batch * self.steps


@dataclass(frozen=True)
class Cell:
    """An arm with a seed."""

    arm: PlannedArm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-s{self.seed}"

    @property
    def recipe(self) -> Recipe:
        return self.arm.recipe.model_copy(update={"seed": self.seed})


@dataclass(frozen=True)
class Plan:
    """A study on certain shards, in a certain folder."""

    study: Study
    arms: tuple[PlannedArm, ...]
    seeds: tuple[int, ...]
    shards: Path
    data_digest: str
    out: Path
    chosen: tuple[str, ...]
    """Arms that are run; the others may be there already."""

    @property
    def cells(self) -> list[Cell]:
        """Every cell of the study, seed by seed: when time runs out, every arm has the same seeds."""
        return [Cell(arm, seed) for seed in self.seeds for arm in self.arms]

    @property
    def todo(self) -> list[Cell]:
        """The cells that were asked for."""
        return [cell for cell in self.cells if cell.arm.name in self.chosen]

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name

    def record(self) -> dict[str, Any]:
        """Flat keys of all that must not change once a cell has run. Seeds may be added."""
        study = self.study
        keys: dict[str, Any] = {"data_digest": self.data_digest, "protocol": study.protocol}
        for arm in self.arms:
            own = {key: value for key, value in result_keys(arm.recipe).items() if key != "seed"}
            keys.update({f"arms.{arm.name}.{key}": value for key, value in own.items()})
        for item in study.evaluations:
            about = item.model_dump(mode="json", exclude={"name", "batch_size"})
            keys.update({f"evaluations.{item.key}.{key}": value for key, value in about.items()})
        for name in ("primary", "secondary"):
            section = getattr(study, name).model_dump(mode="json")
            keys.update({f"{name}.{key}": value for key, value in section.items()})
        keys["equivalence"] = study.equivalence
        keys["clusters"] = study.clusters.model_dump(mode="json") if study.clusters else None
        return keys


def make_plan(
    study: Study, *, shards: Path | None, out: Path | None, overrides: list[str], arms: list[str], seeds: int | None
) -> Plan:
    """Resolve the study on its shards. `arms` and `seeds` (the first so many) run a part of it."""
    folder = out or STUDIES / study.name
    recipes = resolve(study, overrides, lambda path: best_of(Path(path), folder.parent))
    if strange := sorted(set(arms) - recipes.keys()):
        raise UsageFault(f"no arm is called {', '.join(strange)}", f"there are: {', '.join(recipes)}")
    first = next(iter(recipes.values()))
    place = Path(shards or first.data.shards)
    index = shard_index.load(place)
    for item in study.evaluations:  # A name that is not known ends it here, not at the end of the first cell.
        make_task(item.task, item.options_on(place))
        index.split(item.split)
    if study.clusters and not (place / study.clusters.file).is_file():
        raise DataFault(f"clusters.file = {place / study.clusters.file} does not exist", "it is relative to the shards")
    planned = _planned(study, recipes, index)
    if seeds is not None and seeds > len(study.seeds):
        raise UsageFault(f"the study has {len(study.seeds)} seeds, not {seeds}", "add seeds to the study file")
    chosen = tuple(arms) or tuple(recipes)
    return Plan(study, tuple(planned), study.seeds[:seeds], place, index.digest, folder, chosen)


def guard(plan: Plan, amend: str) -> list[dict[str, Any]]:
    """Note the protocol, or compare it with the one that is there; returns the amendments.

    UsageFault lists what changed. With a reason (`amend`) the change is noted, and stands under every table.
    """
    path, now = plan.out / PROTOCOL, plan.record()
    if not path.exists():
        write_json(path, {"study": plan.study.name, "keys": now, "amendments": []})
        return []
    before = read_json(path)
    amendments: list[dict[str, Any]] = before["amendments"]
    # Through JSON and back tuples are lists and keys are text.
    changes = changed_keys(before["keys"], now)
    if changes and not amend:
        rows = "\n  ".join(changes)
        raise UsageFault(
            f"{plan.out} was begun with another protocol:\n  {rows}",
            "undo the change, choose another --out, or say why with --amend 'REASON': it is told under every table",
        )
    if changes:
        amendments = [*amendments, {"reason": amend, "changes": changes}]
        write_json(path, {"study": plan.study.name, "keys": now, "amendments": amendments})
    return amendments


def best_of(path: Path, studies: Path) -> dict[str, Any]:
    """What the best arm of another study sets; UsageFault where that study has no results yet."""
    other = load_study(path)
    results = studies / other.name / RESULTS
    found = read_json(results).get("best") if results.exists() else None
    if not found:
        raise UsageFault(
            f"an arm takes over the best of study {other.name}, which has no results in {results.parent}",
            f"kdctool sweep {path} --out {results.parent}",
        )
    return dict(found["set"])


def flops_per_clip(recipe: Recipe) -> float:
    """Counted FLOPs of one clip's forward and backward pass; 0 for objectives that are not ours."""
    if recipe.objective.name not in (*PRESETS, DISTILL):
        return 0.0
    model = recipe.model.model_copy(update={"init": ""})  # No weights are needed to count.
    objective = pretrain.build_objective(recipe.model_copy(update={"model": model}))
    side = model.image_size
    with torch.random.fork_rng(devices=[]):
        return per_clip(objective, {"fbank": (model.audio_frames, model.mel_bins), "frame": (3, side, side)})


def _planned(study: Study, recipes: dict[str, Recipe], index: shard_index.Index) -> list[PlannedArm]:
    flops = {name: flops_per_clip(recipe) for name, recipe in recipes.items()}
    lengths = {arm.name: arm.length for arm in study.arms}
    for arm in study.arms:
        if arm.flops_of:
            if not flops[arm.name] or not flops[arm.flops_of]:
                raise UsageFault(f"arm {arm.name}: the FLOPs of a plugin's objective cannot be counted", "set `length`")
            lengths[arm.name] = lengths[arm.flops_of] * flops[arm.flops_of] / flops[arm.name]
    found = []
    for arm in study.arms:
        recipe = recipes[arm.name]
        parts = ("video",) if recipe.objective.student_sees_frames_alone else BOTH
        clips = len(whole(index.split(recipe.data.train_split), parts)[0])
        per_epoch = clips // recipe.training.global_batch
        if not per_epoch:
            raise UsageFault(
                f"arm {arm.name}: {clips} training clips are fewer than one batch of {recipe.training.global_batch}",
                f"--set training.global_batch={max(1, clips // 2)}",
            )
        wanted = study.steps / per_epoch if study.steps else recipe.training.epochs
        epochs = max(1, round(wanted * lengths[arm.name]))
        if study.steps or epochs != recipe.training.epochs:
            share = study.warmup or recipe.optim.warmup_epochs / recipe.training.epochs
            recipe = with_length(recipe, epochs, share)
        found.append(PlannedArm(arm.name, arm.title, recipe, epochs * per_epoch, flops[arm.name]))
    return found
