"""Steps until done: learning rate, step, log, checkpoint, and a clean end however it ends."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdctool.batch import Batch
from kdctool.dist import any_rank, barrier, is_main, world
from kdctool.errors import Interrupted
from kdctool.progress import bar, say
from kdctool.recipe import Log as LogOptions
from kdctool.recipe import Optim
from kdctool.train import checkpoint
from kdctool.train.log import Log, write_status
from kdctool.train.optim import learning_rate, set_learning_rate
from kdctool.train.step import Trainer, train_step
from kdctool.train.stop import StopWish

WARMUP_STEPS = 5
"""First steps of a process are left out of its rates: they pay for starting workers and kernels."""


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    steps_per_epoch: int
    total_steps: int


@dataclass(frozen=True)
class Fitted:
    """How a finished run went."""

    step: int
    last: dict[str, float]
    clips_per_s: float
    data_wait: float
    """Share of the time spent waiting for data, warm-up steps left out."""
    resumed_from: int


def fit(
    trainer: Trainer,
    batches: Callable[[int], Iterator[list[Any]]],
    to_batch: Callable[[Any], Batch],
    length: Length,
    optim: Optim,
    options: LogOptions,
    run: Path,
    identity: dict[str, Any],
) -> Fitted:
    """Train until `length.total_steps`, going on from the newest complete checkpoint of `run`.

    `batches(step)` yields raw micro batches per step from that step on; `to_batch` puts one on the device.
    `identity` stands in every checkpoint: what a resume is compared with.
    """
    folder = run / "checkpoints"
    found = checkpoint.latest(folder)
    step = 0
    if found is not None:
        checkpoint.restore(found, trainer.objective, trainer.optimizer)
        trainer.scaler.load_state_dict(found.state["scaler"])
        step = found.step
        if is_main():
            say(f"resume: {found.folder} holds step {step} of {length.total_steps}; going on from there")
    barrier()
    resumed_from = step
    log = Log(run, step, options.tensorboard) if is_main() else None
    clock = _Clock(trainer.global_batch)
    meters: dict[str, float] = {}
    last_save, saved_step = time.monotonic(), step if found is not None else -1

    def save() -> None:
        nonlocal last_save, saved_step
        if is_main() and step != saved_step:
            state = {"step": step, "clips": step * trainer.global_batch, "scaler": trainer.scaler.state_dict()}
            checkpoint.save(folder, trainer.objective, trainer.optimizer, {**state, **identity})
            checkpoint.purge(folder, options.keep)
        last_save, saved_step = time.monotonic(), step
        barrier()

    trainer.objective.train()
    every = options.checkpoint_every_steps or length.steps_per_epoch
    try:
        with StopWish() as wish, bar("train", length.total_steps, "steps") as progress:
            progress.advance(step)
            reading = batches(step)
            while step < length.total_steps:
                clock.before_data()
                raw = next(reading)
                clock.before_step()
                lr = learning_rate(optim, step, length.steps_per_epoch, length.total_steps)
                set_learning_rate(trainer.optimizer, lr)
                meters = train_step(trainer, [to_batch(micro) for micro in raw], step)
                clock.after_step()
                if log is not None and (step % options.every_steps == 0 or step + 1 == length.total_steps):
                    row = {**meters, "lr": lr, "epoch": step // length.steps_per_epoch, **clock.row(trainer.device)}
                    log.write(step, row)
                step += 1
                progress.advance(1, f"loss {meters['loss']:.4f}  {clock.rate:.0f} clips/s")
                due = options.checkpoint_every_minutes > 0 and (
                    time.monotonic() - last_save > 60 * options.checkpoint_every_minutes
                )
                if step % every == 0 or any_rank(due, trainer.device):
                    save()
                if any_rank(wish.asked, trainer.device):
                    save()
                    raise Interrupted(
                        f"stopped by a signal after step {step}; a checkpoint was saved",
                        "the same command goes on from there",
                        ctrl_c=any_rank(wish.ctrl_c, trainer.device),
                    )
        save()
    finally:
        if log is not None:
            log.close()
    return Fitted(step, meters, clock.rate, clock.wait_share, resumed_from)


class _Clock:
    """Clips per second and the share of time spent waiting for data, first steps excluded."""

    def __init__(self, global_batch: int) -> None:
        self.global_batch = global_batch
        self.steps = 0
        self.waiting = self.working = 0.0
        self._mark = time.monotonic()

    def before_data(self) -> None:
        self._mark = time.monotonic()

    def before_step(self) -> None:
        now = time.monotonic()
        if self.steps >= WARMUP_STEPS:
            self.waiting += now - self._mark
        self._mark = now

    def after_step(self) -> None:
        if self.steps >= WARMUP_STEPS:
            self.working += time.monotonic() - self._mark
        self.steps += 1

    @property
    def rate(self) -> float:
        """Clips per second over all ranks; 0 until the first counted step."""
        counted = self.steps - WARMUP_STEPS
        return counted * self.global_batch / (self.waiting + self.working) if counted > 0 else 0.0

    @property
    def wait_share(self) -> float:
        total = self.waiting + self.working
        return self.waiting / total if total > 0 else 0.0

    def row(self, device: torch.device) -> dict[str, float]:
        row = {"clips_per_s": round(self.rate, 2), "data_wait": round(self.wait_share, 4)}
        row["clips_per_s_per_rank"] = round(self.rate / world()[1], 2)
        if device.type == "cuda":
            row["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
        return row


def end_status(run: Path, step: int, error: BaseException | None, next_step: str) -> None:
    """Write how the run ended into status.json (main rank only)."""
    if not is_main():
        return
    if error is None:
        write_status(run, "done", step, 0, next_step=next_step)
        return
    code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
    state = "interrupted" if code in (75, 130) else "failed"
    hint = getattr(error, "next_step", "") or "the same command goes on from the last checkpoint"
    write_status(run, state, step, code, f"{type(error).__name__}: {error}".splitlines()[0], hint)
