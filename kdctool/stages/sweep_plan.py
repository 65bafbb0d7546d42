"""What a study will run: whole recipes with lengths and FLOPs, its cells, and the protocol that guards a resume."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdctool import recipe as recipes
from kdctool.errors import DataFault, UsageFault
from kdctool.files import read_json, write_json
from kdctool.recipe import Recipe, changed_keys, result_keys
from kdctool.recipe.arms import as_overrides, define
from kdctool.recipe.study import Study
from kdctool.recipe.study_parts import Evaluation
from kdctool.recipe.write import flat
from kdctool.shards import index as shard_index
from kdctool.stages.evaluate import make_task
from kdctool.stages.sweep_arms import PlannedArm, plan_arms
from kdctool.stages.sweep_best import best_of, refuse_circles
from kdctool.tasks import tasks

STUDIES = Path("studies")
PROTOCOL = "protocol.json"


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

    @property
    def supervision(self) -> Recipe | None:
        """Of the training with labels that this cell is; None for any other."""
        of = self.arm.supervision
        return of and of.model_copy(update={"seed": self.seed})


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
    taken_over: dict[str, str] = field(default_factory=dict)
    """Arm, or nothing for all of them -> the arm of another study that was taken over, in words."""

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
            keys.update(_reference_keys(arm))
        for item in study.evaluations:
            about = item.model_dump(mode="json", exclude={"name", "batch_size"})
            keys.update({f"evaluations.{item.key}.{key}": value for key, value in about.items()})
        for name in ("primary", "secondary"):
            section = getattr(study, name).model_dump(mode="json")
            keys.update({f"{name}.{key}": value for key, value in section.items()})
        keys["equivalence"] = study.equivalence
        keys["clusters"] = study.clusters.model_dump(mode="json") if study.clusters else None
        # Only where there are any: studies that were begun before these keys existed go on.
        about = study.references.model_dump(mode="json") if study.references else {}
        keys.update({f"references.{key}": value for key, value in about.items()})
        for curve in study.curves:
            keys[f"curves.{curve.name}"] = [list(point) for point in curve.points]
        return keys


def make_plan(
    study: Study, *, shards: Path | None, out: Path | None, overrides: list[str], arms: list[str], seeds: int | None
) -> Plan:
    """Resolve the study on its shards. `arms` and `seeds` (the first so many) run a part of it."""
    folder = out or STUDIES / study.name
    refuse_circles(study)
    best = functools.cache(lambda path: best_of(Path(path), folder.parent))
    defined = define(study, overrides, best)
    if strange := sorted(set(arms) - defined.keys()):
        raise UsageFault(f"no arm is called {', '.join(strange)}", f"there are: {', '.join(defined)}")
    place = Path(shards or defined[study.arms[0].name].recipe.data.shards)
    index = shard_index.load(place)
    for item in study.evaluations:  # What is not known ends it here, not at the end of the first cell.
        make_task(item.task, item.options_on(place))
        index.split(item.split)
        for definition in defined.values() if item.set else ():
            finetuning(definition.recipe, item)
    if study.clusters and not (place / study.clusters.file).is_file():
        raise DataFault(f"clusters.file = {place / study.clusters.file} does not exist", "it is relative to the shards")
    planned = plan_arms(study, defined, index)
    if seeds is not None and seeds > len(study.seeds):
        raise UsageFault(f"the study has {len(study.seeds)} seeds, not {seeds}", "add seeds to the study file")
    chosen = tuple(arms) or tuple(defined)
    taken = {"": str(best(study.best_of))} if study.best_of else {}
    taken |= {name: str(definition.took) for name, definition in defined.items() if definition.took}
    return Plan(study, tuple(planned), study.seeds[:seeds], place, index.digest, folder, chosen, taken)


def guard(plan: Plan, amend: str) -> list[dict[str, Any]]:
    """Note the protocol, or compare it with the one that is there; returns the amendments.

    UsageFault lists what changed. With a reason (`amend`) the change is noted, and stands under every table.
    """
    path, now = plan.out / PROTOCOL, plan.record()
    if not path.exists():
        _write(plan, now, [])
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
        _write(plan, now, amendments)
    return amendments


def _write(plan: Plan, keys: dict[str, Any], amendments: list[dict[str, Any]]) -> None:
    about = {"study": plan.study.name, "keys": keys, "taken_over": plan.taken_over, "amendments": amendments}
    write_json(plan.out / PROTOCOL, about)


def finetuning(recipe: Recipe, item: Evaluation) -> Recipe:
    """The recipe of the finetuning before an evaluation: the same for a supervised arm as for the others."""
    if item.set and tasks.get(item.task).cls.wants != "classifier":
        raise UsageFault(
            f"evaluation {item.key} sets {', '.join(dict(flat(item.set)))}, but no finetuning precedes {item.task}",
            'use task = "classification", or leave `set` out',
        )
    return recipes.loads(recipes.to_toml(recipe), as_overrides(dict(flat(item.set))), f"evaluation {item.key}")


def _reference_keys(arm: PlannedArm) -> dict[str, Any]:
    """What decides a reference beside its recipe."""
    if not arm.is_reference:
        return {}
    about = {"reference": arm.training}
    if arm.supervision is not None:
        about |= {f"supervised.{key}": value for key, value in result_keys(arm.supervision, ("finetune",)).items()}
    return {f"arms.{arm.name}.{key}": value for key, value in about.items()}
