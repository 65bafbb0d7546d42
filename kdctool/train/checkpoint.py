"""Checkpoints that are complete or absent: safetensors and JSON in a folder that appears by rename.

A checkpoint holds tensors and a small JSON. Order of clips, masks and augmentation are functions of the step,
so there is no reader or generator state to keep.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdctool.errors import UsageFault
from kdctool.files import PARTIAL, disk_faults, fsync_folder, read_json, sha256_file, write_json
from kdctool.progress import say

PREFIX = "step-"
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, hashes checked."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def save(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write `folder/step-N` from `state["step"]`; a half-written one is never visible under that name."""
    final = folder / f"{PREFIX}{state['step']:08d}"
    partial = final.with_name(final.name + PARTIAL)
    model = {name: tensor.detach().contiguous().cpu() for name, tensor in objective.state_dict().items()}
    tensors, groups = _pack(objective, optimizer)
    needed = sum(t.numel() * t.element_size() for t in (*model.values(), *tensors.values()))
    with disk_faults(final, needed):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            save_file(model, partial / MODEL)
            save_file(tensors, partial / OPTIMIZER)
            write_json(partial / STATE, {**state, "optimizer_groups": groups})
            files = {name: sha256_file(partial / name) for name in (MODEL, OPTIMIZER, STATE)}
            write_json(partial / MANIFEST, {"files": files})
            for name in (MODEL, OPTIMIZER):
                with open(partial / name, "rb") as file:
                    os.fsync(file.fileno())
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        fsync_folder(folder)
    return final


def purge(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what interrupted saves left behind."""
    for path in [*_names(folder)[:-keep], *folder.glob(f"*{PARTIAL}")]:
        # A rename first: a purge that is killed half-way must not leave something that looks complete.
        doomed = path if path.name.endswith(PARTIAL) else path.with_name(path.name + PARTIAL)
        if path != doomed:
            os.replace(path, doomed)
        shutil.rmtree(doomed)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose hashes hold; damaged ones are named and passed over."""
    for path in reversed(_names(folder)):
        if (cause := damage(path)) is None:
            return Checkpoint(path, read_json(path / STATE))
        say(f"checkpoint {path} is damaged ({cause}); trying the one before")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        files = read_json(path / MANIFEST)["files"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_file(path / name) != expected:
            return f"{name} does not match its sha256"
    return None


def restore(checkpoint: Checkpoint, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimiser state in place; UsageFault when the checkpoint is of another model."""
    model = load_file(checkpoint.folder / MODEL)
    own = objective.state_dict()
    odd = sorted(
        name
        for name in own.keys() | model.keys()
        if name not in own or name not in model or own[name].shape != model[name].shape
    )
    if odd:
        raise UsageFault(
            f"{checkpoint.folder} is of another model: {len(odd)} tensors differ, first {odd[0]}",
            "use the recipe it was made with, or another --out",
        )
    objective.load_state_dict(model)
    _unpack(objective, optimizer, load_file(checkpoint.folder / OPTIMIZER), checkpoint.state["optimizer_groups"])


def _names(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{PREFIX}*") if p.is_dir() and not p.name.endswith(PARTIAL))


def _parameter_names(objective: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _pack(
    objective: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Optimiser state by parameter name, so that it fits any grouping and any number of ranks."""
    state = optimizer.state_dict()
    names = _parameter_names(objective, optimizer)
    tensors = {
        f"{names[place]}/{key}": torch.as_tensor(value).detach().contiguous().cpu()
        for place, values in state["state"].items()
        for key, value in values.items()
    }
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    return tensors, groups


def _unpack(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, torch.Tensor],
    groups: list[dict[str, Any]],
) -> None:
    state = optimizer.state_dict()
    for group, saved in zip(state["param_groups"], groups, strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
    places = {name: place for place, name in enumerate(_parameter_names(objective, optimizer))}
    state["state"] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        state["state"].setdefault(places[name], {})[key] = tensor
    optimizer.load_state_dict(state)
