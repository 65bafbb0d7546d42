"""Steps until done: learning rate, step, log, checkpoint, and a clean end however it ends."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdctool.batch import Batch
from kdctool.dist import any_rank, barrier, is_main
from kdctool.errors import Interrupted, KdctoolError
from kdctool.objectives.collapse import Watch
from kdctool.progress import Bar, bar, say
from kdctool.recipe import Log as LogOptions
from kdctool.recipe import Optim
from kdctool.recipe.machine import Guard
from kdctool.train import checkpoint
from kdctool.train.average import EpochAverage
from kdctool.train.clock import Clock
from kdctool.train.guard import NonFiniteError, NonFiniteGuard
from kdctool.train.log import Log, write_status
from kdctool.train.optim import learning_rate, set_learning_rate
from kdctool.train.saver import Saver
from kdctool.train.step import Trainer, train_step
from kdctool.train.stop import StopWish
from kdctool.train.watchdog import Watchdog


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    steps_per_epoch: int
    total_steps: int


@dataclass(frozen=True)
class Feed:
    """Where batches come from: `batches(step)` yields raw micro batches per step, `to_batch` puts one on the device."""

    batches: Callable[[int], Iterator[list[Any]]]
    to_batch: Callable[[Any], Batch]


@dataclass(frozen=True)
class Fitted:
    """How a finished run went."""

    step: int
    last: dict[str, float]
    clips_per_s: float
    data_wait: float
    """Share of the time spent waiting for data, warm-up steps left out."""
    resumed_from: int
    skipped: tuple[int, ...] = ()
    """Steps left out because they were not finite."""


class Loop:
    """One run, from the newest complete checkpoint to its last step.

    `identity` stands in every checkpoint. `probe` measures the model every `log.probe_every_steps` on all ranks.
    `average_from` is the first epoch whose weights enter the average that the run stands for; 0 = the last weights.
    """

    def __init__(
        self,
        trainer: Trainer,
        feed: Feed,
        length: Length,
        optim: Optim,
        log: LogOptions,
        guard: Guard,
        run: Path,
        identity: dict[str, Any],
        probe: Callable[[], dict[str, float]] | None = None,
        profile: tuple[int, int] | None = None,
        average_from: int = 0,
    ) -> None:
        self.trainer, self.feed, self.length, self.optim = trainer, feed, length, optim
        self.log_options, self.guard_options = log, guard
        self.run, self.identity, self.probe, self.profile = run, identity, probe, profile
        self.saver = Saver(run / "checkpoints", log.keep, log.keep_every, guard.failed_saves)
        self.clock = Clock(trainer.global_batch, trainer.flops_per_clip)
        self.watch = Watch()
        self.average = EpochAverage(trainer.objective, average_from, length.steps_per_epoch)
        self.step = self.saved = 0
        self.last: Mapping[str, float] = {}
        self.told = ""

    def fit(self) -> Fitted:
        """Train until the last step; whatever ends it early leaves the last checkpoint whole."""
        skipped = self._resume()
        resumed_from = self.step
        self.guard = NonFiniteGuard(self.guard_options, self.run, self.identity, skipped)
        self.log = Log(self.run, self.step, self.log_options) if is_main() else None
        self.trainer.objective.train()
        try:
            with (
                StopWish() as wish,
                Watchdog(self.guard_options.stall_s, self._stalled) as watchdog,
                bar("train", self.length.total_steps, "steps") as progress,
            ):
                progress.advance(self.step)
                self._steps(wish, watchdog, progress)
            self._save()
            self.saver.finish()
            barrier()
        finally:
            self.saver.wait()
            if self.log is not None:
                self.log.close()
        if is_main() and (advice := self.clock.advice()):
            say(advice)
        return Fitted(
            self.step, dict(self.last), self.clock.rate, self.clock.wait_share, resumed_from, tuple(self.guard.skipped)
        )

    def _steps(self, wish: StopWish, watchdog: Watchdog, progress: Bar) -> None:
        reading = self.feed.batches(self.step)
        with self._profiler() as profiler:
            while self.step < self.length.total_steps:
                self.clock.before_data()
                raw = next(reading)
                self.clock.before_step()
                if self.step not in self.guard.skipped and not self._one_step(raw):
                    reading = self.feed.batches(self.step)  # Rolled back: read again from there.
                    continue
                self.step += 1
                self.average.after_step(self.step)
                self.clock.after_step()
                profiler()
                watchdog.beat(self.step)
                progress.advance(1, f"{self.told}  {self.clock.rate:.0f} clips/s")
                self._after_step(wish)

    def _one_step(self, raw: list[Any]) -> bool:
        """Train on one global batch; False when the run went back to an earlier checkpoint instead."""
        lr = learning_rate(self.optim, self.step, self.length.steps_per_epoch, self.length.total_steps)
        set_learning_rate(self.trainer.optimizer, lr)
        micros = [self.feed.to_batch(micro) for micro in raw]
        try:
            self.last = train_step(self.trainer, micros, self.step)
        except NonFiniteError as error:
            self.guard.judge(error, micros)
            if self.guard_options.on_nonfinite == "rollback":
                self._roll_back()
                return False
            return True
        except torch.cuda.OutOfMemoryError as error:
            raise self._too_large(len(micros[0]["row"])) from error
        # A row that nobody logs is not read: reading it would wait for the device.
        if self.log is not None and self._is_logged():
            numbers = dict(self.last)
            self.told = f"loss {numbers['loss']:.4f}"
            row = {**numbers, "lr": lr, "epoch": self.step // self.length.steps_per_epoch}
            self.log.write(self.step, row | self.clock.row(self.trainer.device))
            for warning in self.watch.look(numbers):
                say(f"warning: {warning}")
        return True

    def _is_logged(self) -> bool:
        return self.step % self.log_options.every_steps == 0 or self.step + 1 == self.length.total_steps

    def _after_step(self, wish: StopWish) -> None:
        minutes = self.log_options.checkpoint_every_minutes
        overdue = minutes > 0 and time.monotonic() - self.saver.last_try > 60 * minutes
        bad_disk = self.saver.doomed is not None or self.saver.broken is not None
        overdue, asked, ctrl_c, bad_disk = any_rank(overdue, wish.asked, wish.ctrl_c, bad_disk)
        every = self.log_options.checkpoint_every_steps or self.length.steps_per_epoch
        if bad_disk:
            raise (
                self.saver.doomed or self.saver.broken or KdctoolError("checkpoints cannot be written on the main rank")
            )
        if self.step % every == 0 or overdue or asked:
            self._save()
        if asked:
            self.saver.finish()
            raise Interrupted(
                f"stopped by a signal after step {self.step}; a checkpoint was saved",
                "the same command goes on from there",
                ctrl_c=ctrl_c,
            )
        probe_every = self.log_options.probe_every_steps
        if self.probe is not None and probe_every and self.step % probe_every == 0:
            found = self.probe()
            self.trainer.objective.train()
            if self.log is not None:
                self.log.write(self.step - 1, {f"probe/{name}": value for name, value in found.items()})

    def _save(self) -> None:
        if self.step == self.saved:
            return
        state = {
            "step": self.step,
            "total_steps": self.length.total_steps,
            "clips": self.step * self.trainer.global_batch,
            "skipped": self.guard.skipped,
            "scaler": self.trainer.scaler.state_dict(),
            **checkpoint.machine(),
            **self.identity,
        }
        self.saver.save(self.trainer.objective, self.trainer.optimizer, state, self.average)
        self.saved = self.step
        if is_main():
            write_status(self.run, "running", self.step)

    def _resume(self) -> list[int]:
        """Go to the newest complete checkpoint; the steps it says were left out."""
        found = checkpoint.latest(self.run / "checkpoints")
        barrier()
        if found is None:
            return []
        checkpoint.restore(found, self.trainer.objective, self.trainer.optimizer, self.average)
        self.trainer.scaler.load_state_dict(found.state["scaler"])
        self.step = self.saved = found.step
        if is_main():
            say(f"resume: {found.folder} holds step {self.step} of {self.length.total_steps}; going on from there")
            for difference in checkpoint.other_machine(found.state):
                say(f"resume: {difference}; from here on equal to the other run to rounding, not bit for bit")
        return list(found.state.get("skipped", []))

    def _roll_back(self) -> None:
        self.saver.wait()
        barrier()
        found = checkpoint.latest(self.run / "checkpoints")
        if found is None:
            return  # Nothing was saved yet: leaving the step out is all there is.
        checkpoint.restore(found, self.trainer.objective, self.trainer.optimizer, self.average)
        self.trainer.scaler.load_state_dict(found.state["scaler"])
        self.step = self.saved = found.step
        if self.log is not None:
            self.log.close()
            self.log = Log(self.run, self.step, self.log_options)
        if is_main():
            say(f"rolled back to step {self.step}")

    def _too_large(self, clips: int) -> KdctoolError:
        smaller = max((n for n in range(1, clips) if clips % n == 0), default=0)
        memory = torch.cuda.get_device_properties(self.trainer.device).total_memory / 2**30
        return KdctoolError(
            f"{clips} clips per pass do not fit into the {memory:.0f} GB of the GPU",
            f"--set training.micro_batch={smaller} gives the same result"
            if smaller
            else "a smaller model, or --set parallel.mode=fsdp on several GPUs",
        )

    def _stalled(self, cause: str) -> None:
        if is_main():
            write_status(self.run, "failed", self.saved, 1, cause, "the same command goes on from the last checkpoint")

    @contextlib.contextmanager
    def _profiler(self) -> Iterator[Callable[[], None]]:
        """Record the steps of `profile` into RUN/profile as a trace that Perfetto and TensorBoard open."""
        if self.profile is None or not is_main():
            yield lambda: None
            return
        first, last = self.profile[0] - self.step, self.profile[1] - self.step
        schedule = torch.profiler.schedule(wait=max(0, first - 1), warmup=1, active=last - max(first, 1), repeat=1)
        handler = torch.profiler.tensorboard_trace_handler(str(self.run / "profile"))
        with torch.profiler.profile(schedule=schedule, on_trace_ready=handler, record_shapes=True) as recorder:
            yield recorder.step


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
