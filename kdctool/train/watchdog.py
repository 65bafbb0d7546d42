"""Ends a run in which nothing moves any more, and names the rank that is behind.

A rank that is stopped leaves the others waiting in a collective, for ever or until a time-out that names nobody.
Every rank writes its step into the store; whoever sees no step of its own for too long reads them all.
"""

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from kdctool import dist
from kdctool.progress import say

EXIT_CODE = 1


class Watchdog:
    """A thread per rank. `beat` after every step; silence longer than `stall_s` ends the process."""

    def __init__(self, stall_s: float, on_stall: Callable[[str], None]) -> None:
        self.stall_s, self.on_stall = stall_s, on_stall
        self._last = time.monotonic()
        self._step = -1
        self._done = threading.Event()
        self._store = dist.side_store()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def beat(self, step: int) -> None:
        """A step was finished."""
        self._step, self._last = step, time.monotonic()

    def _watch(self) -> None:
        told = -2
        while not self._done.wait(min(1.0, self.stall_s / 4)):
            if self._store is not None and told != self._step:
                told = self._step
                self._store.set(f"beat/{dist.world()[0]}", f"{told} {time.time()}")
            if time.monotonic() - self._last > self.stall_s:
                cause = self._cause()
                say(f"error: {cause}")
                self.on_stall(cause)
                # The main thread waits inside a collective and cannot be woken.
                os._exit(EXIT_CODE)

    def _cause(self) -> str:
        rank, ranks = dist.world()
        cause = f"no step was finished for {self.stall_s:.0f} s on rank {rank} (last step {self._step})"
        if self._store is None:
            return f"{cause}; guard.stall_s sets the limit"
        beats = {}
        for other in range(ranks):
            key = f"beat/{other}"
            if self._store.check([key]):
                step, when = self._store.get(key).decode().split()
                beats[other] = (int(step), float(when))
        silent = [other for other in range(ranks) if other not in beats]
        behind = silent or [other for other, beat in beats.items() if beat == min(beats.values())]
        return f"{cause}; rank {', '.join(map(str, behind))} is behind the others"
