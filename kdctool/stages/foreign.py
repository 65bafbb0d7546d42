"""What to say of weights without a recipe beside them: which facts are missing, and the command that adds them."""

import json
from pathlib import Path
from typing import Any

from kdctool.errors import UsageFault, quoted
from kdctool.export.about import WEIGHTS
from kdctool.files import read_json
from kdctool.stages.run_folder import RECIPE_FILE

CONFIG = "config.json"
_FILES = (".safetensors", ".pth", ".pt")


def no_model(path: Path) -> UsageFault:
    """Why `path` is no model of ours, and what makes one of it."""
    if not path.exists():
        return UsageFault(f"{path} does not exist", "a run is a folder under runs/; an export is what export writes")
    card = timm_card(path)
    if card and (path / WEIGHTS).is_file():
        return UsageFault(
            f"{path} is a folder of timm's ({card['architecture']}) without kdctool.json: recipe, normalisation and "
            "labels are not said in a way that kdctool opens",
            f"{_command(path / WEIGHTS, card, path / RECIPE_FILE)}, then name FOLDER; exports of runs have the file",
        )
    if path.is_file() and path.suffix in _FILES:
        told = timm_card(path.parent) or {"architecture": "NAME"}
        return UsageFault(
            f"{path} is a bare file of weights: it says neither which architecture it is of, nor how inputs are "
            "normalised, nor what its classes are called",
            f"of a ViT: {_command(path, told, path.parent / RECIPE_FILE)}; of an audio-visual model: kdctool import "
            f"{quoted(path)} FOLDER --as LAYOUT; then name FOLDER",
        )
    return UsageFault(
        f"{path} is neither a run nor an export of kdctool",
        "a run is a folder under runs/; an export is what kdctool export writes",
    )


def timm_card(folder: Path) -> dict[str, Any]:
    """config.json of a folder as timm saves one; {} where there is none."""
    path = folder / CONFIG
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) and found.get("architecture") else {}


def _command(weights: Path, card: dict[str, Any], recipe: Path) -> str:
    """The import that keeps a ViT an image model, with all that is known of it."""
    command = f"kdctool import {quoted(weights)} FOLDER --as timm --tower image --model {card['architecture']}"
    if recipe.is_file():
        return f"{command} --recipe {quoted(recipe)}"
    seen = card.get("pretrained_cfg") or {}
    for key in ("mean", "std"):
        command += f" --set 'data.image_{key}={json.dumps(seen[key])}'" if seen.get(key) else ""
    return command
