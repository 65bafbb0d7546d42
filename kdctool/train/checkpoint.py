"""Checkpoints that are complete or absent: safetensors and JSON in a folder that appears by rename.

A checkpoint holds tensors and a small JSON. Order of clips, masks and augmentation are functions of the step,
so there is no reader or generator state to keep.
"""

import errno
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX

from kdctool.dist import is_main, world
from kdctool.errors import UsageFault
from kdctool.files import PARTIAL, digest, disk_faults, fsync_folder, read_json, sha256_file, write_json
from kdctool.progress import say
from kdctool.train.average import EpochAverage, mean
from kdctool.train.parallel import shard_like, whole

PREFIX = "step-"
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
AVERAGE = "average.safetensors"
"""Sum of the weights at the ends of some epochs, where a run averages them; `state.json` says of how many."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, hashes checked."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def averaged(self) -> int:
        """Epochs whose weights are averaged so far; 0 = the weights are the last ones."""
        return int(self.state.get("average", {}).get("count", 0))

    def said(self) -> str:
        """What the weights are, in words, where they are an average; else nothing."""
        if not self.averaged:
            return ""
        first = int(self.state["average"]["first"])
        return f"mean of the weights after epochs {first} to {first + self.averaged - 1}"


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory: full tensors on the CPU, their own copies."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return int(self.state["step"])


def snapshot(
    objective: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], average: EpochAverage | None = None
) -> Snapshot:
    """Copy what a checkpoint holds; collective when parameters are sharded, so all ranks must call it."""
    model = {name: _copied(tensor) for name, tensor in objective.state_dict().items()}
    tensors, groups = _pack(objective, optimizer)
    state = {**state, "optimizer_groups": groups}
    if average is None or not average.count:
        return Snapshot(model, tensors, state)
    sums = {name: _copied(tensor) for name, tensor in average.sums.items()}
    return Snapshot(model, tensors, {**state, "average": average.about()}, sums)


def write(folder: Path, taken: Snapshot) -> Path:
    """Write `folder/step-N`; a half-written one is never visible under that name."""
    final = folder / f"{PREFIX}{taken.step:08d}"
    partial = final.with_name(final.name + PARTIAL)
    parts = {MODEL: taken.model, OPTIMIZER: taken.optimizer} | ({AVERAGE: taken.average} if taken.average else {})
    needed = sum(t.numel() * t.element_size() for tensors in parts.values() for t in tensors.values())
    with disk_faults(final, needed):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for name, tensors in parts.items():
                _save_tensors(tensors, partial / name, needed)
            write_json(partial / STATE, taken.state)
            files = {name: sha256_file(partial / name) for name in (*parts, STATE)}
            write_json(partial / MANIFEST, {"files": files})
            if final.exists():
                # Renamed first: whatever happens from here on, nothing half-deleted looks complete.
                os.replace(final, _doomed(final))
                shutil.rmtree(_doomed(final))
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        fsync_folder(folder)
    return final


def _save_tensors(tensors: dict[str, Tensor], path: Path, needed: int) -> None:
    try:
        save_file(tensors, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except SafetensorError as error:
        # safetensors wraps the operating system's error in its own.
        if "No space left" in str(error) or "os error 28" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        raise


def save(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Snapshot and write in one go."""
    return write(folder, snapshot(objective, optimizer, state))


def purge(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Delete what is neither among the newest `keep` nor at a multiple of `keep_every` steps, and interrupted saves."""
    for path in names(folder)[:-keep]:
        if keep_every and int(path.name.removeprefix(PREFIX)) % keep_every == 0:
            continue
        # A rename first: a purge that is killed half-way must not leave something that looks complete.
        os.replace(path, _doomed(path))
    for path in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(path)


def _doomed(path: Path) -> Path:
    return path.with_name(f"{path.name}.old{PARTIAL}")


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose hashes hold; damaged ones are named and passed over."""
    for path in reversed(names(folder)):
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


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights a run stands for: the last ones, or the mean over the ends of the epochs that it averages."""
    model = load_file(checkpoint.folder / MODEL)
    if count := checkpoint.averaged:
        model |= mean(load_file(checkpoint.folder / AVERAGE), count)
    return model


def weights_sha256(checkpoint: Checkpoint) -> str:
    """Of `weights`: of the model's file, or of all that the average is made of."""
    files = read_json(checkpoint.folder / MANIFEST)["files"]
    return digest([files[MODEL], files[AVERAGE], checkpoint.averaged]) if checkpoint.averaged else str(files[MODEL])


def restore(
    checkpoint: Checkpoint,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: EpochAverage | None = None,
) -> None:
    """Load weights and optimiser state in place, sharded or not; UsageFault when it is of another model."""
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
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(shard_like(model[name], tensor))
    _unpack(objective, optimizer, load_file(checkpoint.folder / OPTIMIZER), checkpoint.state["optimizer_groups"])
    if average is not None:
        average.restore(load_file(checkpoint.folder / AVERAGE) if checkpoint.averaged else {}, checkpoint.averaged)


def machine() -> dict[str, Any]:
    """What bit-exactness depends on, as it stands in a checkpoint."""
    return {
        "ranks": world()[1],
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }


def other_machine(state: dict[str, Any]) -> list[str]:
    """How this process differs from the one that wrote a checkpoint, where it matters for rounding."""
    return [f"{key} was {state[key]} and is {value}" for key, value in machine().items() if state.get(key) != value]


def names(folder: Path) -> list[Path]:
    """The checkpoints of a run that look complete, oldest first."""
    return sorted(p for p in folder.glob(f"{PREFIX}*") if p.is_dir() and not p.name.endswith(PARTIAL))


def _parameters(objective: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters in the optimiser's order."""
    # Activation checkpointing puts its own name in the middle; state dicts leave it out, and so do we.
    names = {id(p): name.replace(_CHECKPOINT_PREFIX, "") for name, p in objective.named_parameters()}
    return [(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]


def _copied(tensor: Tensor) -> Tensor:
    """The full tensor as a copy on the CPU; on other ranks than the main one, which write nothing, an empty one."""
    full = whole(tensor.detach())
    return full.to("cpu", copy=True).contiguous() if is_main() else full.new_empty(0)


def _pack(objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Optimiser state by parameter name, so that it fits any grouping and any number of ranks."""
    state = optimizer.state_dict()
    names = [name for name, _ in _parameters(objective, optimizer)]
    tensors = {
        f"{names[place]}/{key}": _copied(torch.as_tensor(value))
        for place, values in state["state"].items()
        for key, value in values.items()
    }
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    return tensors, groups


def _unpack(
    objective: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    state = optimizer.state_dict()
    for group, saved in zip(state["param_groups"], groups, strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
    parameters = _parameters(objective, optimizer)
    places = {name: place for place, (name, _) in enumerate(parameters)}
    state["state"] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        like = parameters[places[name]][1]
        value = shard_like(tensor, like) if tensor.shape == like.shape and tensor.ndim else tensor
        state["state"].setdefault(places[name], {})[key] = value
    optimizer.load_state_dict(state)
