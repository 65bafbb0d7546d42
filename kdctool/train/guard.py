"""What to do about a step whose loss or gradient is not finite: capture it, then stop, skip it, or go back.

Order, masks and augmentation are functions of the step, so a step number and the clip ids are enough to run it
again: `kdctool replay FILE`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdctool.batch import Batch
from kdctool.dist import gather, is_main
from kdctool.errors import KdctoolError, quoted
from kdctool.files import write_json
from kdctool.progress import say
from kdctool.recipe.machine import Guard

FOLDER = "nonfinite"


class NonFiniteError(KdctoolError):
    """A step that was not taken; the same on all ranks, as loss and gradient norm are."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        super().__init__(
            f"step {step}: loss {loss}, gradient norm {norm}: not finite, so the step was not taken",
            "lower optim.lr or set optim.grad_clip; the last checkpoint is intact",
        )
        self.step, self.loss, self.norm = step, loss, norm


class NonFiniteGuard:
    """Counts and captures bad steps. `skipped` is part of every checkpoint, so a resume leaves them out too."""

    def __init__(self, options: Guard, run: Path, identity: dict[str, Any], skipped: list[int]) -> None:
        self.options, self.run, self.identity = options, run, identity
        self.skipped = list(skipped)

    def judge(self, error: NonFiniteError, micros: list[Batch]) -> None:
        """Write the capture file; return when the step may be left out, raise `error` when the run must end."""
        path = self.capture(error, micros)
        error.next_step = f"kdctool replay {quoted(path)}; {error.next_step}"
        if self.options.on_nonfinite == "stop" or len(self.skipped) >= self.options.max_skips:
            raise error
        self.skipped.append(error.step)
        if is_main():
            say(f"{error.cause}; leaving it out ({len(self.skipped)} of {self.options.max_skips}), clips in {path}")

    def capture(self, error: NonFiniteError, micros: list[Batch]) -> Path:
        """RUN/nonfinite/step-N.json: clips of the whole global batch by row, recipe digest, loss and norm."""
        path = self.run / FOLDER / f"step-{error.step:08d}.json"
        own = torch.stack([torch.cat([batch[name] for batch in micros]) for name in ("row", "clip")])  # (2, B)
        everyone: Tensor = gather(own, dim=1).cpu()
        order = everyone[0].argsort()
        if is_main():
            about = {
                "step": error.step,
                "loss": repr(error.loss),
                "grad_norm": repr(error.norm),
                "clips": everyone[1][order].tolist(),
                "run": str(self.run),
                **self.identity,
            }
            write_json(path, about)
        return path
