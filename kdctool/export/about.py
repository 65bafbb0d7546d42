"""kdctool.json: what kdctool opens an export by, whatever names its tensors have."""

from pathlib import Path
from typing import Literal

from kdctool import __version__
from kdctool.export import Package
from kdctool.files import sha256_file, write_json

ABOUT, WEIGHTS, NORM = "kdctool.json", "model.safetensors", "norm.safetensors"
Names = Literal["released", "timm"]
"""released: those of published CAV-MAE, an image model's by timm with mlp_head.*; timm: those of its classifiers."""


def write_about(package: Package, folder: Path, names: Names) -> str:
    """Write kdctool.json beside the weights of `folder`; returns its name."""
    beside = {"norm_sha256": sha256_file(folder / NORM)} if (folder / NORM).exists() else {}
    told: dict[str, object] = {"teachers": package.teachers} if package.teachers else {}
    told |= {"unfinished": package.unfinished} if package.unfinished else {}
    write_json(
        folder / ABOUT,
        {
            "kdctool": __version__,
            "kind": package.kind,
            "step": package.step,
            "labels": list(package.labels),
            "multi_label": package.multi_label,
            "recipe": package.recipe.model_dump(mode="json"),
            "recipe_digest": package.recipe_digest,
            "data_digest": package.data_digest,
            "clip": package.clip,
            "source": package.source,
            "source_sha256": package.source_sha256,
            "weights_sha256": sha256_file(folder / WEIGHTS),
            "names": names,
            **beside,
            **told,
        },
    )
    return ABOUT
