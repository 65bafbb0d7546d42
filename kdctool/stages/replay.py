"""Run a step again that was not finite, and find the clips that did it.

The step is rebuilt from the run's recipe, the newest checkpoint before it and the step number: order, masks and
augmentation follow from those. Nothing of the run is changed.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdctool import recipe as recipes
from kdctool.data.clips import Clips
from kdctool.data.device import ToBatch
from kdctool.data.loader import read
from kdctool.data.order import Order
from kdctool.errors import UsageFault
from kdctool.files import read_json
from kdctool.progress import say
from kdctool.seeds import fold
from kdctool.shards import index as shard_index
from kdctool.stages import fitting, pretrain
from kdctool.stages.run_folder import RECIPE_FILE, RUN_FILE, read_about
from kdctool.train import checkpoint


@dataclass(frozen=True)
class Replayed:
    """What a replay saw."""

    step: int
    loss: float
    from_step: int
    """Step of the checkpoint whose weights were used."""
    clips: list[tuple[str, float]]
    """uid and loss of every clip on its own, those that are not finite first."""


def run(path: Path, *, shards: Path | None = None, device_name: str = "auto") -> Replayed:
    """Run the step of a capture file again on the weights of the newest checkpoint at or before it."""
    about = _read(path)
    folder, step = path.parent.parent, int(about["step"])
    if not (folder / RUN_FILE).exists():
        raise UsageFault(f"{path} does not lie in a run: no {folder / RUN_FILE}", "name it as RUN/nonfinite/FILE")
    if read_about(folder)["kind"] != "pretrain":
        raise UsageFault(f"{folder} is a finetuning", "replay knows pre-training runs")
    recipe = recipes.load(folder / RECIPE_FILE)
    index = shard_index.load(Path(shards or recipe.data.shards))
    if index.digest != about["data_digest"]:
        raise UsageFault(f"{index.folder} does not hold the data of the run", "--shards names the right ones")
    split = index.split(recipe.data.train_split)
    device = fitting.choose_device(device_name)
    objective = pretrain.build_objective(recipe).to(device)
    from_step = _load(objective, folder, step)
    order = Order(tuple(split.sizes), recipe.training.global_batch, recipe.seed, recipe.training.epochs)
    requests = next(order.micro_batches(step, recipe.training.global_batch, 0, 1))
    if [request.clip for request in requests] != about["clips"]:
        raise UsageFault(f"{path} lists other clips than step {step} of {folder} reads", "was the capture file edited?")
    clips = Clips(index, split, recipe, training=True, with_labels=False)
    to_batch = ToBatch(recipe, device, training=True)
    batch_loss, rows = math.nan, []
    for number, raw in enumerate(read(clips, [requests, *([one] for one in requests)], 0, device)):
        loss = _loss(objective, to_batch(raw), recipe.training.global_batch, fold(recipe.seed, "step", step))
        if number == 0:
            batch_loss = loss
        else:
            rows.append((split.key(requests[number - 1].clip), loss))
    rows.sort(key=lambda row: (math.isfinite(row[1]), -row[1] if math.isfinite(row[1]) else 0.0))
    return Replayed(step, batch_loss, from_step, rows)


@torch.no_grad()
def _loss(objective: torch.nn.Module, batch: dict[str, torch.Tensor], global_batch: int, seed: int) -> float:
    rng = torch.Generator(batch["fbank"].device).manual_seed(seed)
    return float(objective(batch, rng, global_batch).total)


def _load(objective: torch.nn.Module, run: Path, step: int) -> int:
    """Weights of the newest checkpoint at or before `step`; the initial ones where there is none."""
    for folder in sorted((run / "checkpoints").glob(f"{checkpoint.PREFIX}*"), reverse=True):
        number = folder.name.removeprefix(checkpoint.PREFIX)
        if number.isdigit() and int(number) <= step and checkpoint.damage(folder) is None:
            objective.load_state_dict(checkpoint.load_file(folder / checkpoint.MODEL))
            return int(number)
    say("no checkpoint at or before that step: replaying on the initial weights")
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        about = dict(read_json(path))
        if {"step", "clips", "data_digest"} <= about.keys():
            return about
    except (OSError, ValueError, TypeError) as error:
        cause = (error.strerror or type(error).__name__) if isinstance(error, OSError) else error
        raise UsageFault(f"cannot read {path}: {cause}", "such files are written to RUN/nonfinite/") from error
    raise UsageFault(f"{path} is no capture of a step", "they are written to RUN/nonfinite/")
