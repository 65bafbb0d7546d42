"""One training step of kdctool, or of the re-created reference, on a synthetic batch, to be called again and again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from reference_step import ReferenceModel, ReferenceStep

from kdctool import recipe as recipes
from kdctool.batch import Batch
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.objectives import build
from kdctool.objectives.classification import ClassificationObjective
from kdctool.objectives.reconstruction import Decoder
from kdctool.recipe import Recipe
from kdctool.recipe.machine import Parallel
from kdctool.train import optim
from kdctool.train.parallel import wrap
from kdctool.train.step import Trainer, train_step

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
BASE = """
name = "base"
[optim]
name = "adam"
lr = 1e-4
"""
"""KDC-MAE base is what a recipe's defaults describe."""
CPU = torch.device("cpu")
EAGER = Parallel(mode="none", compile="off")
CLASSES = 309
"""Classes of VGGSound."""


def recipe_of(*changes: str) -> Recipe:
    """KDC-MAE base with changes in --set syntax."""
    return recipes.loads(BASE, list(changes))


def synthetic(recipe: Recipe, clips: int, device: torch.device, classes: int = 0, seed: int = 0) -> Batch:
    """A batch of noise of the recipe's shapes, with a label per clip when `classes` says so."""
    rng = torch.Generator().manual_seed(seed)
    model = recipe.model
    batch = {
        "clip": torch.arange(clips),
        "row": torch.arange(clips),
        "fbank": 0.5 * torch.randn(clips, model.audio_frames, model.mel_bins, generator=rng),
        "frame": torch.randn(clips, 3, model.image_size, model.image_size, generator=rng),
    }
    if classes:
        target = torch.randint(classes, (clips,), generator=rng)
        batch["label"] = torch.nn.functional.one_hot(target, classes).float()
    return {name: value.to(device) for name, value in batch.items()}


@dataclass
class Step:
    """A step that can be run again and again; `loss` is that of the last one."""

    run: Callable[[int], float]
    clips: int
    weights: int
    """Bytes of the parameters."""
    count: int = 0
    losses: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self.losses.append(self.run(self.count))
        self.count += 1
        return self.losses[-1]


def pretraining_objective(recipe: Recipe, device: torch.device = CPU) -> Any:
    """The recipe's objective with fresh weights, equal for equal devices."""
    torch.manual_seed(0)
    with device:
        return build(recipe, AVEncoder(recipe.model))


def ours(
    recipe: Recipe,
    clips: int,
    device: torch.device,
    precision: str,
    objective: Any = None,
    parallel: Parallel = EAGER,
) -> Step:
    """kdctool's own train_step on one rank, the whole batch in one pass."""
    if objective is None:
        objective = pretraining_objective(recipe, device)
    classes = CLASSES if isinstance(objective, ClassificationObjective) else 0
    batch = synthetic(recipe, clips, device, classes)
    trainer = trainer_of(objective, recipe, clips, device, precision, parallel)
    return Step(lambda step: train_step(trainer, [batch], step)["loss"], clips, _bytes(objective))


def trainer_of(
    objective: Any, recipe: Recipe, clips: int, device: torch.device, precision: str, parallel: Parallel = EAGER
) -> Trainer:
    """What kdctool trains with on one rank, without a run folder around it."""
    objective.to(device).train()
    return Trainer(
        objective=objective,
        module=wrap(objective, device, parallel),
        optimizer=optim.build(objective, recipe.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        device=device,
        autocast=DTYPES[precision],
        global_batch=clips,
        grad_clip=0.0,
        seed=0,
    )


def finetuning_objective(recipe: Recipe, device: torch.device = CPU) -> ClassificationObjective:
    """Classification of VGGSound's classes by both modalities."""
    torch.manual_seed(0)
    with device:
        classifier = AVClassifier(AVEncoder(recipe.model), CLASSES, "both")
    return ClassificationObjective(recipe.finetune, classifier, CLASSES, multi_label=False)


def reference(recipe: Recipe, clips: int, device: torch.device, precision: str) -> Step:
    """The release's step, re-created; fp16 with a GradScaler is what it runs on a GPU."""
    torch.manual_seed(0)
    encoder = AVEncoder(recipe.model.model_copy(update={"released_joint_order": True}))
    model = ReferenceModel(recipe, encoder, Decoder(recipe.model, recipe.objective.decoder))
    step = ReferenceStep(model, device, DTYPES[precision])
    batch = synthetic(recipe, clips, device)
    return Step(lambda _: step(batch["fbank"], batch["frame"]), clips, _bytes(model))


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
