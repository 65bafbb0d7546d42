"""Where the batches of a training come from: read anew in every epoch, or from clips that are decoded once and kept."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from kdctool.data.clips import Clips, Raw
from kdctool.data.held import Held
from kdctool.data.holding import Holding, choose
from kdctool.data.loader import Reading, training_batches
from kdctool.data.order import Order
from kdctool.dist import any_rank, world
from kdctool.errors import EnvironmentFault, Interrupted
from kdctool.train.checkpoint import PREFIX
from kdctool.train.stop import StopWish


def holding(clips: Clips, device: torch.device, nproc: int) -> Holding | None:
    """Where the recipe keeps the clips; refused where it cannot."""
    return choose(clips, device, int(os.environ.get("LOCAL_WORLD_SIZE", max(nproc, 1))))


class Feeding:
    """Training batches of this rank from any step on."""

    def __init__(
        self, clips: Clips, order: Order, micro_batch: int, workers: int, device: torch.device, where: Holding | None
    ) -> None:
        self.clips, self.order, self.micro_batch, self.workers = clips, order, micro_batch, workers
        self.device, self.where = device, where.where if where else None
        self.reading: Reading | None = None

    def prepare(self, run: Path) -> None:
        """Decode the clips that are to be held, unless no step is left. Interrupted by a signal, on all ranks alike."""
        if self.where is None or _newest_step(run) >= self.order.total_steps:
            return
        try:
            held = Held(self.clips, self.where, self.device)
        except torch.cuda.OutOfMemoryError as error:
            raise EnvironmentFault(
                "the clips were to be held in GPU memory, which others have taken meanwhile",
                "--set data.hold=memory keeps them in main memory, data.hold=none reads them in every epoch",
            ) from error
        with StopWish() as wish:
            held.fill(self.workers, lambda: wish.asked)
            asked, ctrl_c = any_rank(wish.asked, wish.ctrl_c)
            if asked:
                raise Interrupted(
                    "stopped by a signal while the clips were decoded", "the same command starts over", ctrl_c=ctrl_c
                )
        self.reading = held.read

    def __call__(self, step: int) -> Iterator[list[Raw]]:
        split = (self.micro_batch, *world(), self.workers)
        return training_batches(self.clips, self.order, step, *split, self.device, self.reading)


def _newest_step(run: Path) -> int:
    """Of the checkpoints by their names; -1 without any. A damaged one counts: reading goes without what is held."""
    names = (path.name.removeprefix(PREFIX) for path in (run / "checkpoints").glob(f"{PREFIX}*"))
    return max((int(name) for name in names if name.isdigit()), default=-1)
