"""Weights to start a pre-training from (`model.init`): a run, an export, an import, or a file in a known layout."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kdctool import dist
from kdctool import recipe as recipes
from kdctool.errors import UsageFault, quoted
from kdctool.export.about import WEIGHTS
from kdctool.files import read_json, sha256_file
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.layouts import HEADS, State, detect, layout
from kdctool.models.positions import fit_positions
from kdctool.models.teachers import fill
from kdctool.models.weights import load_strict, shown, split_state
from kdctool.progress import say
from kdctool.recipe import Model, Recipe
from kdctool.stages.foreign import timm_card
from kdctool.stages.load import EXPORT_FILE, Parts, newest_checkpoint, open_model
from kdctool.stages.read_weights import read_weights
from kdctool.stages.run_folder import RECIPE_FILE, RUN_FILE
from kdctool.train import checkpoint


@dataclass(frozen=True)
class Initial:
    """Weights to start a training from, by released names, made to fit a model's positions."""

    state: State
    fresh: dict[str, str]
    """Regular expression of names that these weights do not fill -> why."""
    notes: tuple[str, ...]


def initial_state(path: Path, model: Model) -> Initial:
    """Weights of a run, of an export or import, or of a file in a layout that its names tell (not timm's)."""
    if path.is_dir():
        source, state = _folder_state(path)
        _check_heads(source.heads, model.heads, f"{path} was trained with", f"--set model.heads={source.heads}")
        fitted, notes = fit_positions(state, model, source)
        return Initial(fitted, {}, tuple(notes))
    state = read_weights(path)
    name = detect(state)
    if not name:
        first = ", ".join(list(state)[:3])
        raise UsageFault(f"model.init = {path} holds no known layout of weights (it begins with {first})",
                         f"kdctool import {quoted(path)} --as LAYOUT FOLDER, then model.init = FOLDER")  # fmt: skip
    known = layout(name)
    usual = known.sizes(state).model.get("heads", model.heads)
    _tell(f"{path} looks like {name}")
    if known.sizes(state).model["width"] in HEADS:
        fix = f"--set model.heads={usual}; or kdctool import {quoted(path)} with the other number, and start from that"
        _check_heads(usual, model.heads, f"published models as wide as {path} have", fix)
    mapped = known.translate(state, model)
    fitted, notes = fit_positions(mapped.state, model)
    left = [f"{len(mapped.unused)} tensors unused: {shown(list(mapped.unused))}"] if mapped.unused else []
    return Initial(fitted, mapped.fresh, (*mapped.notes, *left, *notes))


def weights_digest(path: Path) -> str:
    """sha256 that tells the weights of a run, an export or a file apart from others."""
    if not path.is_dir():
        if not path.is_file():
            raise UsageFault(f"there are no weights at {path}", "model.init and --init name a run, an export or a file")
        return sha256_file(path)
    if (path / RUN_FILE).exists():
        return checkpoint.weights_sha256(newest_checkpoint(path))
    if (path / EXPORT_FILE).exists():
        return str(read_json(path / EXPORT_FILE)["weights_sha256"])
    if timm_card(path):
        raise UsageFault(f"model.init = {path} is a folder of timm's", f"name the file in it: {path / WEIGHTS}")
    raise UsageFault(f"model.init = {path} holds no weights", "name a run, an export, an import or a weights file")


def start_from(path: Path, model: Model, encoder: AVEncoder, decoder: nn.Module | None) -> None:
    """Load what `model.init` names into fresh modules; each is filled whole, kept as it is and told, or an error."""
    initial = initial_state(path, model)
    _tell(*initial.notes)
    encoder_state, decoder_state, _ = split_state({name: value.float() for name, value in initial.state.items()})
    load_strict(encoder, _completed(encoder_state, encoder, initial.fresh), "encoder")
    if decoder is None:
        return
    if decoder_state:
        load_strict(decoder, _completed(decoder_state, decoder, initial.fresh), "decoder")
    else:
        _tell(f"{path} has no decoder, so it starts random")


def start_image(path: Path, recipe: Recipe, vit: Any) -> None:
    """Fill a fresh image student from an image model of ours, or from a file by the names of timm or of MAE.

    Positions are interpolated where the grid is another; a fixed table becomes that of the weights.
    """
    arch = recipe.objective.distill.student.arch
    own = {name: value.shape for name, value in vit.state_dict().items()}
    if path.is_dir():
        opened = open_model(path, images=True)
        theirs = opened.recipe.objective.distill.student.arch if opened.is_image else "the encoder of [model]"
        if theirs.split(".")[0] != arch.split(".")[0]:
            raise UsageFault(
                f"model.init = {path} is {theirs}, objective.distill.student.arch = '{arch}'",
                f"set objective.distill.student.arch = '{theirs}'" if opened.is_image else "name an image model",
            )
        state: State = opened.encoder.state_dict()
    else:
        state = read_weights(path)
    if {name: value.shape for name, value in state.items()} == own:
        load_strict(vit, state, "encoder")
    else:
        fill(vit, state, arch, str(path), "model.init", "set objective.distill.student.arch to the model it is of")
    _tell(f"the student starts from {path}, its head is random")


def _tell(*notes: str) -> None:
    for note in notes if dist.is_main() else ():
        say(f"model.init: {note}")


def _completed(state: State, module: nn.Module, fresh: dict[str, str]) -> State:
    """`state` with the module's own values of what a layout never fills."""
    own = module.state_dict()
    missing = [name for name in own if name not in state and any(re.fullmatch(pattern, name) for pattern in fresh)]
    return {**state, **{name: own[name] for name in missing}}


def _folder_state(path: Path) -> tuple[Model, State]:
    if (path / RUN_FILE).exists():
        recipe, parts = recipes.load(path / RECIPE_FILE), Parts.of_run(checkpoint.weights(newest_checkpoint(path)))
    elif (path / EXPORT_FILE).exists():
        about = read_json(path / EXPORT_FILE)
        recipe, parts = recipes.validate(about["recipe"], origin=str(path / EXPORT_FILE)), Parts.of_export(path, about)
    else:
        raise UsageFault(f"model.init = {path} holds no weights", "name a run, an export, an import or a weights file")
    if recipe.objective.student_sees_frames_alone:
        raise UsageFault(
            f"model.init = {path} is an image model, and what shall be trained is audio-visual",
            "import the ViT with kdctool import --as timm --tower video, then model.init = FOLDER",
        )
    return recipe.model, {**parts.encoder, **parts.decoder}


def _check_heads(theirs: int, ours: int, who: str, fix: str) -> None:
    if theirs != ours:
        raise UsageFault(
            f"model.heads = {ours}, but {who} {theirs}: the shapes of attn.qkv are the same, what they mean is not", fix
        )
