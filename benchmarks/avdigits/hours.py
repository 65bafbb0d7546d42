"""What the studies cost before any has run: FLOPs of every cell counted, and the hours that they mean on a machine.

Seconds of training are taken to go with counted FLOPs, and everything to go as much faster with --jobs as arm D does.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from harness import ROOT

from avdigits import chain
from avdigits.chain import Chain
from kdctool import recipe as recipes
from kdctool.files import write_bytes
from kdctool.recipe import Recipe
from kdctool.recipe.arms import as_overrides
from kdctool.recipe.study import Study, load_study
from kdctool.recipe.study_parts import Evaluation
from kdctool.recipe.write import flat
from kdctool.shards import index as shard_index
from kdctool.stages import finetune, pretrain, sweep_plan
from kdctool.tasks import tasks
from kdctool.train.flops import per_clip

RECIPE = ROOT / "recipes" / "avdigits_kdcmae.toml"
"""Arm D; it also stands for every arm that takes over another study's best."""


@dataclass(frozen=True)
class Measured:
    """What this machine does."""

    clips_per_s: float
    """Of arm D, all cells side by side together."""
    flops_per_clip: float
    starting_s: float
    """From the start of a training to its first step: clips that are held are decoded then."""
    evaluating_s: dict[str, float]
    """Kind of evaluation -> seconds of one of them."""

    @property
    def flops_per_s(self) -> float:
        return self.clips_per_s * self.flops_per_clip


@dataclass(frozen=True)
class Cost:
    """What a study takes."""

    study: str
    cells: int
    steps_flops: float
    """Of pre-training: goes with T."""
    other_flops: float
    """Of training with labels: does not."""
    starts: int
    """Trainings, finetuning too."""
    evaluating_s: float
    """Of all cells, one after the other."""

    def hours(self, measured: Measured, jobs: int, share: float = 1.0) -> float:
        """With `share` of the steps."""
        training = (share * self.steps_flops + self.other_flops) / measured.flops_per_s
        beside = self.starts * measured.starting_s + self.evaluating_s
        return (training + beside / jobs) / 3600


def alone(chain_: Chain, name: str, folder: Path, steps: int) -> Study:
    """A study as it can be counted before the ones that it takes over have run; written into `folder`."""
    tree = chain.tree_of(chain_, name, folder, False)
    tree["steps"] = steps
    tree.pop("best_of", None)
    for arm in tree["arms"]:
        if arm.pop("best_of", None):
            arm.setdefault("recipe", tree.get("recipe", str(RECIPE)))
            tree["varies"] = ["objective", "masking"]
    path = folder / f"{name}.toml"
    write_bytes(path, tomli_w.dumps(tree).encode())
    return load_study(path)


def kind(item: Evaluation) -> str:
    """One name for evaluations that take equally long: galleries differ by their lists alone."""
    told = [f"{key}={value}" for key, value in item.options.items() if key in ("present", "labels", "draws")]
    return " ".join([item.task, item.split, *told])


def cost(study: Study, shards: Path, overrides: list[str], measured: Measured) -> Cost:
    """Counted FLOPs of all cells, and the seconds that their evaluations take as measured."""
    plan = sweep_plan.make_plan(
        study, shards=shards, out=shards.parent / study.name, overrides=overrides, arms=[], seeds=None
    )
    index = shard_index.load(shards)
    clips = len(index.split("train"))
    other = evaluating = 0.0
    starts = sum(arm.training != "none" for arm in plan.arms)
    for arm in plan.arms:
        if arm.supervision is not None:
            batch = arm.supervision.finetune.training.global_batch
            other += arm.steps * batch * _labelled_flops(arm.supervision, index)
        for item in study.evaluations:
            if tasks.get(item.task).cls.wants == "classifier":
                recipe = _finetuned(arm.recipe, item)
                starts += 1
                other += _finetuning_clips(recipe, clips, len(index.labels)) * _labelled_flops(recipe, index)
            elif not arm.lacks(item.task):
                evaluating += measured.evaluating_s[kind(item)]
    seeds = len(plan.seeds)
    steps_flops = seeds * sum(arm.flops for arm in plan.arms)
    return Cost(study.name, len(plan.cells), steps_flops, seeds * other, seeds * starts, seeds * evaluating)


def _finetuned(recipe: Recipe, item: Evaluation) -> Recipe:
    return recipes.loads(recipes.to_toml(recipe), as_overrides(dict(flat(item.set))), origin=f"of {item.key}")


def _finetuning_clips(recipe: Recipe, clips: int, classes: int) -> float:
    """Clips that a finetuning passes, drawn again or not."""
    options = recipe.finetune
    few = min(clips, options.per_class * classes) if options.per_class else clips * options.share
    return options.training.epochs * few


def flops_of(recipe: Recipe) -> float:
    """FLOPs of a clip of pre-training, forward and backward."""
    return per_clip(pretrain.build_objective(recipe), _shapes(recipe))


_counted: dict[str, float] = {}


def _labelled_flops(recipe: Recipe, index: shard_index.Index) -> float:
    """FLOPs of a clip of finetuning, forward and backward."""
    known = json.dumps([recipe.model.model_dump(mode="json"), recipe.finetune.modality, recipe.finetune.head])
    if known not in _counted:
        encoder = pretrain.build_objective(recipe).encoder
        shapes = {**_shapes(recipe), "label": (len(index.labels),)}
        _counted[known] = per_clip(finetune.build_objective(recipe, encoder, index), shapes)
    return _counted[known]


def _shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    model = recipe.model
    return {"fbank": (model.audio_frames, model.mel_bins), "frame": (3, model.image_size, model.image_size)}


def steps_that_fit(costs: list[Cost], measured: Measured, jobs: int, steps: int, hours: float) -> int | None:
    """The largest T, in tens, with which all studies take no more than `hours`; None where not even ten steps fit."""
    fixed = sum(item.hours(measured, jobs, 0.0) for item in costs)
    whole = sum(item.hours(measured, jobs) for item in costs)
    if hours <= fixed:
        return None
    return int(steps * (hours - fixed) / (whole - fixed)) // 10 * 10 or None


def table(costs: list[Cost], measured: Measured, jobs: int, steps: int) -> str:
    """What each study takes with T = `steps`."""
    rows = [f"hours with T = {steps}, {jobs} side by side, estimated from {measured.clips_per_s:.1f} clips/s of arm D:"]
    for item in costs:
        hours, fixed = item.hours(measured, jobs), item.hours(measured, jobs, 0.0)
        rows.append(
            f"  {item.study:20} {item.cells:3} cells {(item.steps_flops + item.other_flops) / 1e15:8.1f} PFLOP"
            f" {hours:8.2f} h, of which {fixed:.2f} h do not depend on T"
        )
    rows.append(f"  {'all':20} {sum(item.cells for item in costs):3} cells {'':14} "
                f"{sum(item.hours(measured, jobs) for item in costs):8.2f} h")  # fmt: skip
    return "\n".join(rows)
