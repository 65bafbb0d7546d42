"""What pretrain and finetune share: device, ranks, batches and the loop, around any objective."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdctool import dist
from kdctool.data.clips import Clips
from kdctool.data.device import ToBatch
from kdctool.data.loader import training_batches
from kdctool.data.order import Order
from kdctool.data.whole import whole
from kdctool.errors import DataFault, EnvironmentFault, KdctoolError, UsageFault
from kdctool.files import locked
from kdctool.progress import say
from kdctool.recipe import Optim, Recipe, Training
from kdctool.shards.index import Index, Split
from kdctool.train import launch
from kdctool.train.checkpoint import latest
from kdctool.train.flops import per_clip
from kdctool.train.log import write_status
from kdctool.train.loop import Feed, Fitted, Length, Loop, end_status
from kdctool.train.optim import build
from kdctool.train.parallel import wrap
from kdctool.train.step import Trainer

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """The numbers that follow from recipe, data and world size; computed and checked before anything starts."""

    order: Order
    clips: int
    micro_batch: int
    passes: int
    ranks: int

    def rows(self) -> list[tuple[str, str]]:
        """For the screen, with the arithmetic."""
        order = self.order
        return [
            ("clips", f"{self.clips:,}"),
            ("steps", f"{order.steps_per_epoch} per epoch x {order.epochs} epochs = {order.total_steps}"),
            ("global batch", f"{order.global_batch} = {self.micro_batch} x {self.ranks} ranks x {self.passes} passes"),
        ]


@dataclass(frozen=True)
class Trained:
    """How a pre-training or finetuning went."""

    run: Path
    fitted: Fitted | None
    """None after a dry run, and in the process that only started torchrun."""
    plan_rows: list[tuple[str, str]]
    exit_code: int = 0


def plan(split: Split, training: Training, seed: int, ranks: int) -> Plan:
    """Split the global batch over ranks and passes; UsageFault when it does not divide."""
    micro = training.micro_batch or -(-training.global_batch // ranks)
    if training.global_batch % (micro * ranks):
        raise UsageFault(
            f"training.global_batch = {training.global_batch} is not a multiple of "
            f"micro_batch x ranks = {micro} x {ranks}",
            f"--set training.global_batch={max(1, round(training.global_batch / (micro * ranks))) * micro * ranks}",
        )
    order = Order(tuple(split.sizes), training.global_batch, seed, training.epochs)
    return Plan(order, len(split), micro, training.global_batch // (micro * ranks), ranks)


def usable(split: Split) -> Split:
    """The clips that have sound and frames; says how many of the split have not. DataFault where none has."""
    kept, lacking = whole(split)
    told = ", ".join(f"{count} {reason}" for reason, count in lacking.items())
    if not len(kept):
        raise DataFault(
            f"none of {len(split)} clips of split '{split.name}' has both sound and frames: {told}",
            "kdctool extract without --allow-missing names the files that lack one",
        )
    if lacking and dist.is_main():
        say(f"{len(kept)} of {len(split)} clips have both sound and frames; left out: {told}")
    return kept


def choose_device(name: str) -> torch.device:
    """auto takes a GPU when there is one; under torchrun each process takes its own."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageFault(f"--device {name}: auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("--device cuda, but torch sees no GPU", "kdctool doctor says why; --device cpu works")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def start(nproc: int, device_name: str, arguments: list[str], run: Path, max_restarts: int = 0) -> int | None:
    """Start torchrun when `nproc` asks for it and return its exit code; None in the process that trains itself."""
    if launch.inside_torchrun() or (nproc <= 1 and not max_restarts):
        return None
    gpus = torch.cuda.device_count()
    launch.check_processes(nproc, "cuda" if device_name != "cpu" and gpus else "cpu", gpus)
    return launch.torchrun(nproc, arguments, run, max_restarts)


def clear(run: Path, overwrite: bool) -> None:
    """Delete what an earlier run left in `run`, when --overwrite says so; only files a run writes."""
    # A process that torchrun restarted must not delete what its first life has done.
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if not overwrite or restarted or not dist.is_main():
        return
    for name in ("checkpoints", "tb", "eval", "nonfinite", "profile"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("run.json", "recipe.toml", "metrics.jsonl", "status.json", "requeue.json"):
        (run / name).unlink(missing_ok=True)


def train(
    objective: Any,
    recipe: Recipe,
    index: Index,
    split: Split,
    training: Training,
    optim: Optim,
    the_plan: Plan,
    run: Path,
    device: torch.device,
    identity: dict[str, Any],
    *,
    labels: bool,
    lr_scales: dict[str, float] | None = None,
    next_step: Callable[[Path], str],
    probe: Callable[[], dict[str, float]] | None = None,
    profile: tuple[int, int] | None = None,
) -> Fitted:
    """Fit `objective` in `run`, which is locked meanwhile; status.json tells how it ended."""
    rank, ranks = dist.world()
    model = recipe.model
    shapes: dict[str, tuple[int, ...]] = {
        "fbank": (model.audio_frames, model.mel_bins),
        "frame": (3, model.image_size, model.image_size),
    }
    if labels:
        shapes["label"] = (len(index.labels),)
    # Counting takes a second or two: worth it where the rate of the device is worth knowing.
    flops = per_clip(objective, shapes) if device.type == "cuda" else 0.0
    objective.to(device)
    module = wrap(objective, device, recipe.parallel)
    trainer = Trainer(
        objective=objective,
        module=module,
        optimizer=build(objective, optim, lr_scales),
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "fp16"),
        device=device,
        autocast=_DTYPES[training.precision],
        global_batch=training.global_batch,
        grad_clip=optim.grad_clip,
        seed=recipe.seed,
        flops_per_clip=flops,
        gradient_norms_every=recipe.log.gradient_norms_every * recipe.log.every_steps,
        collapse_every=recipe.log.collapse_every * recipe.log.every_steps,
    )
    clips = Clips(index, split, recipe, training=True, with_labels=labels)
    order, workers = the_plan.order, recipe.data.workers
    feed = Feed(
        lambda step: training_batches(clips, order, step, the_plan.micro_batch, rank, ranks, workers, device),
        ToBatch(recipe, device, training=True),
    )
    length = Length(order.steps_per_epoch, order.total_steps)
    try:
        if rank == 0:
            write_status(run, "running", 0)
        loop = Loop(trainer, feed, length, optim, recipe.log, recipe.guard, run, identity, probe, profile)
        done = loop.fit()
        end_status(run, done.step, None, next_step(run))
        return done
    except (KdctoolError, KeyboardInterrupt, Exception) as error:
        found = latest(run / "checkpoints")
        end_status(run, found.step if found else 0, error, "")
        raise


def lock_run(run: Path) -> Any:
    """The lock of a run's folder; only the main process of a job takes it."""
    return locked(run) if dist.is_main() else contextlib.nullcontext()


def with_workers(recipe: Recipe, workers: int | None) -> Recipe:
    """The recipe with another number of loader processes, which no result depends on."""
    if workers is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": workers})})
