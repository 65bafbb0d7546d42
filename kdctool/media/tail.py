"""Keeps the notes of a run under way in a store, where nothing can be appended: as objects of their newest lines.

OUT/.notes/<ledger>/<number>-<token>.jsonl; the last one grows until it is large, then the next begins. What a kill
costs are the clips that were noted in its last second, which are made again.
"""

import re
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path

from kdctool.errors import EnvironmentFault
from kdctool.places import Remote

SEGMENTS = ".notes"
_LARGE = 1 << 20
_EVERY_S = 0.5
_NAME = re.compile(r"(\d{8})-[0-9a-f]{8}\.jsonl")


def segments(notes: Iterable[str]) -> dict[str, list[str]]:
    """Ledger -> those of the objects below OUT/.notes that hold what was noted after it, in order."""
    found: dict[str, list[str]] = {}
    for name in sorted(notes):
        ledger, _, last = name.rpartition("/")
        if _NAME.fullmatch(last):
            found.setdefault(ledger, []).append(name)
    return found


class Tail:
    """Sends what is added to a file of lines after `start`, twice a second."""

    def __init__(self, out: Remote, path: Path, start: int) -> None:
        self.folder = out / SEGMENTS / path.name
        self.path = path
        self._start = self._sent = start
        there = [int(name[:8]) for name in self.folder.children() if _NAME.fullmatch(name)]
        self._number = max(there, default=0) + 1
        self._token = secrets.token_hex(4)
        self._fault: EnvironmentFault | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.send()
        self._thread.start()

    def stop(self) -> None:
        """Send what is left. Raises what went wrong."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.check()
        self.send()

    def check(self) -> None:
        """Raise what went wrong in the meantime."""
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                self.send()
            except EnvironmentFault as fault:
                self._fault = fault
                return

    def send(self) -> None:
        with open(self.path, "rb") as file:
            file.seek(self._start)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        if self._start + len(lines) == self._sent:
            return
        (self.folder / f"{self._number:08d}-{self._token}.jsonl").write(lines)
        self._sent = self._start + len(lines)
        if len(lines) > _LARGE:
            self._start, self._number = self._sent, self._number + 1
