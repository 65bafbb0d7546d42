"""Tiny teachers with random weights in real files, and what learns from them."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from kdctool.batch import Batch
from kdctool.models.student import make_encoder
from kdctool.objectives import build
from kdctool.objectives.hybrid_distill import HybridDistill
from kdctool.recipe import Recipe, validate
from kdctool.stages.teachers import open_teachers

ARCH = "test_vit"
"""timm's own: 6 blocks, 64 wide, 2 heads, patches of 16 pixels."""
SIDE = 112
"""49 tokens."""
CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
FEATURE = {"kind": "feature", "teacher": "c"}
RELATION = {"kind": "relation", "teacher": "m"}


def vit(seed: int, arch: str = ARCH, side: int = SIDE, **more: Any) -> Any:
    """A ViT whose weights are large enough for attention to be more than uniform."""
    torch.manual_seed(seed)
    model = timm.create_model(arch, num_classes=0, img_size=side, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def write(path: Path, model: Any) -> Path:
    save_file(model.state_dict(), path)
    return path


def image_recipe(folder: Path, **distill: Any) -> Recipe:
    """Teachers c and m in `folder`, written where they are missing; `distill` replaces parts of the section."""
    teachers = {}
    for seed, name in enumerate(("c", "m"), start=1):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            write(path, vit(seed))
        teachers[name] = {"id": ARCH, "path": str(path), "mean": [0.5] * 3, "std": [0.5] * 3}
    teachers["c"].update(CLIP)
    section: dict[str, Any] = {"student": {"arch": ARCH}, "losses": [FEATURE, RELATION], **distill}
    named = {loss["teacher"] for loss in section["losses"]} | {section.get("mask", {}).get("teacher", "")}
    section["teachers"] = {name: teachers[name] for name in teachers if name in named} | section.get("teachers", {})
    return validate(
        {
            "name": "tiny",
            "model": {"image_size": SIDE},
            "objective": {"name": "hybrid_distill", "distill": section},
        }
    )


def image_objective(folder: Path, **distill: Any) -> HybridDistill:
    """The objective of `image_recipe`, its teachers read from their files."""
    return objective_of(image_recipe(folder, **distill))


def objective_of(recipe: Recipe) -> HybridDistill:
    teachers = open_teachers(recipe)
    torch.manual_seed(0)
    return build(recipe, make_encoder(recipe), teachers=teachers).train()


def frames(clips: int = 4, side: int = SIDE, seed: int = 5) -> Batch:
    """A batch of pictures and nothing else."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.arange(clips)
    return {"clip": rows, "row": rows, "frame": torch.randn(clips, 3, side, side, generator=rng)}


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
