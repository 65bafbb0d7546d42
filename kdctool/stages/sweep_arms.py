"""The arms of a study as they will be trained: how long, and what a clip costs."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import torch

from kdctool.data.whole import BOTH, whole
from kdctool.errors import DataFault, UsageFault
from kdctool.recipe import Recipe
from kdctool.recipe.arms import Definition, Keys, with_length
from kdctool.recipe.objective import DISTILL
from kdctool.recipe.presets import PRESETS
from kdctool.recipe.study import Study
from kdctool.recipe.study_parts import Arm
from kdctool.shards.index import Index
from kdctool.stages import pretrain
from kdctool.stages.fitting import parts_of
from kdctool.tasks import tasks
from kdctool.train.flops import per_clip


@dataclass(frozen=True)
class PlannedArm:
    """One arm as it will be trained, whatever the seed."""

    name: str
    title: str
    recipe: Recipe
    steps: int
    """Of pre-training, or of the training with labels; 0 where nothing is trained."""
    flops_per_clip: float
    """Forward and backward, counted; 0 for an objective of a plugin and where nothing is pre-trained."""
    training: Literal["pretrain", "none", "supervised"] = "pretrain"
    supervision: Recipe | None = None
    """The recipe of a training with labels; `recipe` has the finetuning of the evaluations."""
    own: Keys = field(default_factory=dict)
    """What it sets or has taken over."""
    length: float = 1.0
    """Steps over those of the study, before they were rounded."""

    @property
    def flops(self) -> float:
        """Of the whole pre-training."""
        return self.flops_per_clip * self.recipe.training.global_batch * self.steps

    @property
    def is_reference(self) -> bool:
        """Whether it is there to be compared with, not to be chosen."""
        return self.training != "pretrain"

    def lacks(self, task: str) -> str:
        """Why this arm can give no number of `task`, or nothing."""
        if self.training == "supervised" and tasks.get(task).cls.wants == "objective":
            return f"{self.name} was trained with labels alone and has no decoder"
        return ""


def plan_arms(study: Study, defined: dict[str, Definition], index: Index) -> list[PlannedArm]:
    """Steps, FLOPs and whole recipes of all arms."""
    flops = {arm.name: 0.0 if arm.is_reference else flops_per_clip(defined[arm.name].recipe) for arm in study.arms}
    lengths = {name: definition.length for name, definition in defined.items()}
    for arm in study.arms:
        if arm.flops_of:
            if not flops[arm.name] or not flops[arm.flops_of]:
                raise UsageFault(f"arm {arm.name}: the FLOPs of a plugin's objective cannot be counted", "set `length`")
            lengths[arm.name] = lengths[arm.flops_of] * flops[arm.flops_of] / flops[arm.name]
    found = []
    for arm in study.arms:
        definition = defined[arm.name]
        recipe, steps = _with_steps(study, arm, definition, lengths[arm.name], index)
        found.append(
            PlannedArm(
                arm.name,
                arm.title,
                recipe,
                steps,
                flops[arm.name],
                training=arm.training,
                supervision=definition.supervision,
                own=definition.own,
                length=lengths[arm.name],
            )
        )
    return found


def _with_steps(study: Study, arm: Arm, definition: Definition, length: float, index: Index) -> tuple[Recipe, int]:
    """The recipe with as many epochs as the arm trains for, and its steps."""
    recipe = definition.recipe
    if arm.training == "none":
        return recipe, 0
    if definition.supervision is not None:
        if not index.labels:
            raise DataFault(f"arm {arm.name} is supervised, but {index.folder} has no labels",
                            "kdctool shard OUT SHARDS --labels labels.csv")  # fmt: skip
        finetune = definition.supervision.finetune
        return recipe, finetune.training.epochs * _per_epoch(
            arm, index, recipe.data.train_split, parts_of(finetune), finetune.training.global_batch, "finetune.training"
        )
    parts = ("video",) if recipe.objective.student_sees_frames_alone else BOTH
    per_epoch = _per_epoch(arm, index, recipe.data.train_split, parts, recipe.training.global_batch, "training")
    wanted = study.steps / per_epoch if study.steps else recipe.training.epochs
    epochs = max(1, round(wanted * length))
    if study.steps or epochs != recipe.training.epochs:
        share = study.warmup or recipe.optim.warmup_epochs / recipe.training.epochs
        recipe = with_length(recipe, epochs, share)
    return recipe, epochs * per_epoch


def _per_epoch(arm: Arm, index: Index, split: str, parts: Collection[str], global_batch: int, section: str) -> int:
    clips = len(whole(index.split(split), parts)[0])
    if clips < global_batch:
        raise UsageFault(
            f"arm {arm.name}: {clips} training clips are fewer than one batch of {global_batch}",
            f"--set {section}.global_batch={max(1, clips // 2)}",
        )
    return clips // global_batch


def flops_per_clip(recipe: Recipe) -> float:
    """Counted FLOPs of one clip's forward and backward pass; 0 for objectives that are not ours."""
    if recipe.objective.name not in (*PRESETS, DISTILL):
        return 0.0
    model = recipe.model.model_copy(update={"init": ""})  # No weights are needed to count.
    objective = pretrain.build_objective(recipe.model_copy(update={"model": model}))
    side = model.image_size
    with torch.random.fork_rng(devices=[]):
        return per_clip(objective, {"fbank": (model.audio_frames, model.mel_bins), "frame": (3, side, side)})
