"""Checkpoints written beside the training: tensors are copied at once, files follow in a thread."""

import threading
import time
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from kdctool.dist import is_main
from kdctool.errors import EnvironmentFault
from kdctool.progress import say
from kdctool.train import checkpoint
from kdctool.train.average import EpochAverage


class Saver:
    """Saves on the main rank, one at a time; a full disk is told, and only repeated failure is fatal."""

    def __init__(self, folder: Path, keep: int, keep_every: int, failures_allowed: int) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.failures_allowed = failures_allowed
        self.failures = 0
        self.last_try = time.monotonic()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, objective: nn.Module, optimizer: Optimizer, state: dict[str, Any], average: EpochAverage | None = None
    ) -> None:
        """Copy everything (collective when sharded) and return; the copy is written in the background."""
        self.wait()
        snapshot = checkpoint.snapshot(objective, optimizer, state, average)
        self.last_try = time.monotonic()
        if is_main():
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
            self._thread.start()

    def wait(self) -> None:
        """Until the last save is on disk, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def doomed(self) -> EnvironmentFault | None:
        """The error to end with, once more saves failed in a row than are allowed."""
        if self.failures > self.failures_allowed and isinstance(self._error, EnvironmentFault):
            return self._error
        return None

    @property
    def broken(self) -> BaseException | None:
        """An error that is not about the disk: a bug, told at once."""
        return None if isinstance(self._error, EnvironmentFault) else self._error

    def finish(self) -> None:
        """Wait, and raise what the last save ended with."""
        self.wait()
        if self._error is not None:
            raise self._error

    def _write(self, snapshot: checkpoint.Snapshot) -> None:
        try:
            checkpoint.write(self.folder, snapshot)
            checkpoint.purge(self.folder, self.keep, self.keep_every)
            self._error, self.failures = None, 0
        except EnvironmentFault as error:
            self._error, self.failures = error, self.failures + 1
            before = checkpoint.names(self.folder)
            rest = f"{before[-1].name} is intact" if before else "there is none before it, so nothing is saved yet"
            say(f"checkpoint of step {snapshot.step} was not saved: {error.cause}; {rest}")
        except BaseException as error:
            self._error = error
