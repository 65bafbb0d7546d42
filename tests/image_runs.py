"""Runs of image models as training leaves them, without the training: random weights, real folders, real shards."""

from pathlib import Path
from typing import Any

import torch
from distilling import ARCH, vit, write
from picture_folders import picture_shards

from kdctool import recipe as recipes
from kdctool.recipe import Recipe
from kdctool.shards import index as shard_index
from kdctool.stages import export, finetune, pretrain, run_folder
from kdctool.train import checkpoint
from kdctool.train.log import write_status

SIDE = 64


def recipe_for(folder: Path, **more: Any) -> Recipe:
    """A student of two teachers, which share a file in `folder`; shards are in `folder`/shards."""
    path = folder / "teacher.safetensors"
    if not path.exists():
        write(path, vit(1, side=SIDE))
    teacher = {"id": ARCH, "path": str(path), "mean": [0.5] * 3, "std": [0.5] * 3}
    distill = {
        "teachers": {"c": teacher},
        "student": {"arch": ARCH},
        "losses": [{"kind": "feature", "teacher": "c"}, {"kind": "relation", "teacher": "c"}],
        **more.pop("distill", {}),
    }
    return recipes.validate(
        {
            "name": "pictures",
            "data": {"shards": str(folder / "shards"), "workers": 0, "image_std": [0.2, 0.25, 0.3]},
            "model": {"image_size": SIDE, **more.pop("model", {})},
            "objective": {"name": "hybrid_distill", "distill": distill},
            "log": {"tensorboard": False},
            "finetune": {"modality": "video", "loss": "ce", "training": {"epochs": 1, "global_batch": 8}},
            **more,
        }
    )


def _finish(run: Path, recipe: Recipe, kind: str, objective: torch.nn.Module, digest: str, about: dict) -> Path:
    torch.manual_seed({"pretrain": 3, "finetune": 4}[kind])
    with torch.no_grad():  # Not the initial norms: a norm that is left out must show.
        for parameter in objective.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    run_folder.prepare(run, recipe, kind, digest, {}, about)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad])
    checkpoint.save(run / "checkpoints", objective, optimizer, {"step": 7})
    write_status(run, "done", 7, 0)
    return run


def pretrained(run: Path, recipe: Recipe) -> Path:
    """A finished pre-training at step 7."""
    objective = pretrain.build_objective(recipe)
    index = shard_index.load(Path(recipe.data.shards))
    taught = {"c": {"model": ARCH, "path": "w", "sha256": "0" * 64, "licence": "CC-BY-NC-4.0"}}
    return _finish(run, recipe, "pretrain", objective, index.digest, {"clip": index.settings, "teachers": taught})


def finetuned(run: Path, recipe: Recipe) -> Path:
    """A finished finetuning at step 7."""
    index = shard_index.load(Path(recipe.data.shards))
    classifying = finetune.build_objective(recipe, pretrain.build_objective(recipe).encoder, index)
    about = {"labels": list(index.labels), "multi_label": index.multi_label, "clip": index.settings}
    return _finish(run, recipe, "finetune", classifying, index.digest, about)


def exported(folder: Path) -> Path:
    """Shards of pictures, a pre-trained run `run`, a finetuned one `tuned`, and the timm export of each."""
    picture_shards(folder, each=8)
    recipe = recipe_for(folder)
    pretrained(folder / "run", recipe)
    finetuned(folder / "tuned", recipe)
    for name in ("run", "tuned"):
        export.run(folder / name, out=folder / f"{name}-timm")
    return folder
