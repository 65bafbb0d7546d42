"""What a person sees while a command works: bars on a terminal, plain lines elsewhere, always on stderr.

Nested work shares one display: a bar that is opened while another is running joins it.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

PLAIN_EVERY_S = 10.0

_quiet = False
_display: Any = None
_open_bars = 0


def be_quiet(quiet: bool) -> None:
    """Silence bars and `say` for this process (`--quiet`)."""
    global _quiet
    _quiet = quiet


def on_terminal() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def say(message: str) -> None:
    """One line for the reader, on stderr, above any bar."""
    if _quiet:
        return
    if _display is not None:
        _display.console.print(message, markup=False, highlight=False, soft_wrap=True)
    else:
        print(message, file=sys.stderr, flush=True)


class Bar:
    """Progress of one piece of work; `advance` it, give it a `note` (rates, counts, the loss)."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.note = ""
        self._start = self._last_line = time.monotonic()
        self._task = None
        if _display is not None:
            self._task = _display.add_task(title, total=total, note="", unit=unit)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done += count
        if note is not None:
            self.note = note
        if self._task is not None:
            _display.update(self._task, advance=count, note=self.note)
        elif time.monotonic() - self._last_line >= PLAIN_EVERY_S:
            self._plain_line()

    def _plain_line(self) -> None:
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate else ""
        of = f"/{self.total}" if self.total is not None else ""
        note = f"  {self.note}" if self.note else ""
        say(f"{self.title}: {self.done}{of} {self.unit}, {rate:.1f}/s{left}{note}")
        self._last_line = now

    def close(self) -> None:
        if self._task is not None:
            _display.update(self._task, total=self.done if self.total is None else self.total)
        elif not _quiet and time.monotonic() - self._start >= PLAIN_EVERY_S:
            self._plain_line()


@contextlib.contextmanager
def bar(title: str, total: int | None, unit: str = "clips") -> Iterator[Bar]:
    """Show the progress of a loop of `total` steps; None where the total is not known."""
    global _display, _open_bars
    if _display is None and not _quiet and on_terminal():
        _display = _new_display()
        _display.start()
    _open_bars += 1
    item = Bar(title, total, unit)
    try:
        yield item
    finally:
        item.close()
        _open_bars -= 1
        if _open_bars == 0 and _display is not None:
            _display.stop()
            _display = None


def _new_display() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )
