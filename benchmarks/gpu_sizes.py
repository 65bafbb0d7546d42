"""Recipes of the pieces of gpu_all.py: base size, or tiny for a smoke run."""

from typing import Any

import torch
from gpu_worker import Settings
from training_step import CLASSES, finetuning_objective, pretraining_objective, recipe_of

from kdctool.recipe import Recipe
from kdctool.recipe.machine import Parallel
from kdctool.train.flops import per_clip

COMPILED = Parallel(mode="none", compile="on")
TINY = (
    "model.audio_frames=64", "model.mel_bins=32", "model.image_size=32", "model.video_patch=8", "model.width=32",
    "model.heads=2", "model.depth=1", "objective.decoder={width=16, heads=2, depth=1}",
)  # fmt: skip


def recipe_for(s: Settings, kind: str) -> Recipe:
    """kdc_mae, cav_mae, or finetune, whose model is the same."""
    changes = ['objective.name="cav_mae"', "masking.views=1"] if kind == "cav_mae" else []
    return recipe_of(*changes, *s.pick((), TINY))


def objective_of(s: Settings, kind: str) -> Any:
    """A fresh objective."""
    recipe, device = recipe_for(s, kind), torch.device(s.device)
    return finetuning_objective(recipe, device) if kind == "finetune" else pretraining_objective(recipe, device)


def flops_of(s: Settings, kind: str, known: dict[str, float] = {}) -> float:  # noqa: B006  counted once per process
    """FLOPs of a clip, forward and backward."""
    if kind not in known:
        known[kind] = per_clip(objective_of(s, kind), shapes(recipe_for(s, kind), kind))
    return known[kind]


def shapes(recipe: Recipe, kind: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a clip's entries of the batch."""
    model = recipe.model
    size = model.image_size
    found: dict[str, tuple[int, ...]] = {"fbank": (model.audio_frames, model.mel_bins), "frame": (3, size, size)}
    return found | ({"label": (CLASSES,)} if kind == "finetune" else {})
