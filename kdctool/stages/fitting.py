"""What pretrain and finetune share: device, ranks, batches and the loop, around any objective."""

import contextlib
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch

from kdctool import dist
from kdctool.data.clips import Clips
from kdctool.data.device import ToBatch
from kdctool.data.order import Order
from kdctool.data.whole import BOTH, whole
from kdctool.errors import DataFault, EnvironmentFault, KdctoolError, UsageFault
from kdctool.files import locked
from kdctool.models.weights import count
from kdctool.progress import say
from kdctool.recipe import Finetune, Optim, Recipe, Training
from kdctool.shards.index import Index, Split
from kdctool.stages import feeding, run_folder
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


class How(TypedDict, total=False):
    """How the machine goes about a training, as the command line says; no number depends on it."""

    nproc: int
    device_name: str
    workers: int | None
    dry_run: bool
    overwrite: bool
    profile: tuple[int, int] | None
    """Steps (from, to) to record."""
    max_restarts: int
    """How often torchrun may start all processes again."""
    arguments: list[str]
    """The command line without --nproc, which torchrun's children receive."""


@dataclass(frozen=True)
class Job:
    """A training that is ready to start: what `pretrain` and `finetune` each put together."""

    recipe: Recipe
    index: Index
    split: Split
    plan: Plan
    objective: Any
    rows: list[tuple[str, str]]
    """For the screen."""
    next_step: Callable[[Path], str]
    guard: dict[str, Any] = field(default_factory=dict)
    """What decides the result beside the recipe, such as initial weights."""
    about: dict[str, Any] = field(default_factory=dict)
    """What others need to open the run, such as its labels."""
    parts: Collection[str] = BOTH
    """What is read of 'audio' and 'video'."""
    finetune: Finetune | None = None
    """Labels are read, clips augmented and steps taken as it says; None in pre-training."""
    lr_scales: dict[str, float] = field(default_factory=dict)
    """Prefix of parameter names -> factor on the learning rate."""
    probe: Callable[[], dict[str, float]] | None = None
    tell: Callable[[bool], None] | None = None
    """Says what else there is to say after `rows`; is told whether it is a dry run."""

    @property
    def kind(self) -> Literal["pretrain", "finetune"]:
        return "finetune" if self.finetune else "pretrain"

    @property
    def training(self) -> Training:
        return (self.finetune or self.recipe).training

    @property
    def optim(self) -> Optim:
        return (self.finetune or self.recipe).optim


@dataclass(frozen=True)
class Trained:
    """How a pre-training or finetuning went."""

    run: Path
    fitted: Fitted | None
    """None after a dry run, and in the process that only started torchrun."""
    plan_rows: list[tuple[str, str]]
    exit_code: int = 0


def run(folder: Path, make: Callable[[int, torch.device], Job], how: How) -> Trained:
    """Carry out the job that `make(ranks, device)` gives, in `folder`, or start torchrun for it.

    `make` runs in the processes that train, which have joined their group by then.
    """
    nproc, device_name, dry_run = how.get("nproc", 1), how.get("device_name", "auto"), how.get("dry_run", False)
    if not dry_run:
        code = start(nproc, device_name, how.get("arguments", []), folder, how.get("max_restarts", 0))
        if code is not None:
            return Trained(folder, None, [], code)
    device = choose_device(device_name)
    dist.init(device)
    try:
        job = make(dist.world()[1] if launch.inside_torchrun() else max(nproc, 1), device)
        clips = _clips(job)
        held = feeding.holding(clips, device, nproc)
        rows = [*job.rows, *([held.row] if held else [])]
        if dist.is_main():
            for name, value in rows:
                say(f"{name}: {value}")
            if job.tell is not None:
                job.tell(dry_run)
        if dry_run:
            return Trained(folder, None, rows)
        with lock_run(folder):
            clear(folder, how.get("overwrite", False))
            identity = {"recipe_digest": "", "data_digest": job.index.digest}
            if dist.is_main():
                data = {"clip": job.index.settings, "shards": str(job.index.folder.resolve())}
                about = (job.recipe, job.kind, job.index.digest, job.guard, {**data, **job.about})
                identity["recipe_digest"] = run_folder.prepare(folder, *about)["recipe_digest"]
            dist.barrier()
            workers = job.recipe.data.workers if how.get("workers") is None else how["workers"]
            feed = feeding.Feeding(clips, job.plan.order, job.plan.micro_batch, workers or 0, device, held)
            return Trained(folder, train(job, folder, device, identity, feed, how.get("profile")), rows)
    finally:
        dist.shutdown()


def plan(split: Split, training: Training, seed: int, ranks: int, weights: np.ndarray | None = None) -> Plan:
    """Split the global batch over ranks and passes; UsageFault when it does not divide.

    `weights` (clips,) make an epoch so many weighted draws with replacement.
    """
    micro = training.micro_batch or -(-training.global_batch // ranks)
    if training.global_batch % (micro * ranks):
        raise UsageFault(
            f"training.global_batch = {training.global_batch} is not a multiple of "
            f"micro_batch x ranks = {micro} x {ranks}",
            f"--set training.global_batch={max(1, round(training.global_batch / (micro * ranks))) * micro * ranks}",
        )
    order = Order(tuple(split.sizes), training.global_batch, seed, training.epochs, weights)
    return Plan(order, len(split), micro, training.global_batch // (micro * ranks), ranks)


def parameters(objective: torch.nn.Module) -> tuple[str, str]:
    """For the screen: how many there are, and how many learn."""
    total, trainable = count(objective)
    return "parameters", f"{total:,} ({trainable:,} trained)"


def usable(split: Split, parts: Collection[str] = BOTH) -> Split:
    """The clips that have the `parts` that are read; says how many have not. DataFault where none has."""
    kept, lacking = whole(split, parts)
    told = ", ".join(f"{count} {reason}" for reason, count in lacking.items())
    wanted = "both sound and frames" if len(parts) > 1 else "sound" if "audio" in parts else "frames"
    if not len(kept):
        raise DataFault(
            f"none of {len(split)} clips of split '{split.name}' has {wanted}: {told}",
            "kdctool extract without --allow-missing names the files that lack one",
        )
    if lacking and dist.is_main():
        say(f"{len(kept)} of {len(split)} clips have {wanted}; left out: {told}")
    return kept


def parts_of(finetune: Finetune) -> Collection[str]:
    """Which of 'audio' and 'video' a finetuning reads."""
    return BOTH if finetune.modality == "both" else (finetune.modality,)


def choose_device(name: str) -> torch.device:
    """auto takes a GPU when there is one; under torchrun each process takes its own."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageFault(f"--device {name} is not known", "auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("--device cuda, but torch sees no GPU", "kdctool doctor says why; --device cpu works")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(device := torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
    torch.backends.cudnn.allow_tf32 = False  # Or convolutions, the patches' projection, would round float32 to 10 bits.
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


def _clips(job: Job) -> Clips:
    labels = job.finetune is not None
    kinds: dict[str, Any] = {"with_labels": labels, "parts": job.parts, "finetune": job.finetune}
    return Clips(job.index, job.split, job.recipe, training=True, **kinds)


def train(
    job: Job,
    folder: Path,
    device: torch.device,
    identity: dict[str, Any],
    batches: feeding.Feeding,
    profile: tuple[int, int] | None = None,
) -> Fitted:
    """Fit the job's objective in `folder`, which is locked meanwhile; status.json tells how it ended."""
    recipe, training, objective, finetune = job.recipe, job.training, job.objective, job.finetune
    # Counting takes a second or two: worth it where the rate of the device is worth knowing.
    flops = per_clip(objective, _shapes(job)) if device.type == "cuda" else 0.0
    objective.to(device)
    module = wrap(objective, device, recipe.parallel)
    trainer = Trainer(
        objective=objective,
        module=module,
        optimizer=build(objective, job.optim, job.lr_scales),
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "fp16"),
        device=device,
        autocast=_DTYPES[training.precision],
        global_batch=training.global_batch,
        grad_clip=job.optim.grad_clip,
        seed=recipe.seed,
        flops_per_clip=flops,
        gradient_norms_every=recipe.log.gradient_norms_every * recipe.log.every_steps,
        collapse_every=recipe.log.collapse_every * recipe.log.every_steps,
    )
    feed = Feed(batches, ToBatch(recipe, device, training=True, finetune=finetune))
    length = Length(job.plan.order.steps_per_epoch, job.plan.order.total_steps)
    average_from = finetune.average_from if finetune else 0
    try:
        if dist.is_main():
            write_status(folder, "running", 0)
        batches.prepare(folder)
        settings = (job.optim, recipe.log, recipe.guard)
        loop = Loop(trainer, feed, length, *settings, folder, identity, job.probe, profile, average_from)
        done = loop.fit()
        end_status(folder, done.step, None, job.next_step(folder))
        return done
    except (KdctoolError, KeyboardInterrupt, Exception) as error:
        found = latest(folder / "checkpoints")
        end_status(folder, found.step if found else 0, error, "")
        raise


def _shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """Of a clip's entries in a batch."""
    model = job.recipe.model
    shapes = {"fbank": (model.audio_frames, model.mel_bins), "frame": (3, model.image_size, model.image_size)}
    return {**shapes, "label": (len(job.index.labels),)} if job.finetune else shapes


def lock_run(run: Path) -> Any:
    """The lock of a run's folder; only the main process of a job takes it."""
    return locked(run) if dist.is_main() else contextlib.nullcontext()
