"""What an extraction is to do: which inputs, with which settings, and what the notes in a folder say of them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from kdctool.errors import UsageFault
from kdctool.media import binary, inputs, parts
from kdctool.media.home import Home
from kdctool.media.ledger import Ledger
from kdctool.media.parts import Part
from kdctool.media.settings import Item, Settings, Tools
from kdctool.places import Place, Remote

Todo = list[tuple[Item, frozenset[int]]]
"""Inputs, each with the starts (ms) of those of its clips that are there."""


@dataclass(frozen=True)
class Work:
    """The inputs that a command answers for, and how clips are made of them."""

    settings: Settings
    whole: inputs.Inputs
    """All inputs, those of other parts too."""
    part: Part | None = None
    packed: frozenset[str] = frozenset()
    """Clips (uids) that count as there: they are in shards."""

    @cached_property
    def found(self) -> inputs.Inputs:
        """The inputs of this part, or all."""
        return self.part.of(self.whole) if self.part else self.whole

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each input."""
        return {item.key: size_of(item) for item in self.found.items}

    def ledger(self, home: Home) -> Ledger:
        """The notes in a folder. UsageFault where they tell of other settings, another split, or other videos."""
        ledger = Ledger(home.notes, self.part, self.packed, home.clips)
        ledger.load()
        if self.part:
            parts.check_count(home.notes, self.part)
        ledger.check_settings(self.settings)
        known = ledger.finished.keys() | ledger.started.keys()
        if known and known.isdisjoint(item.key for item in self.whole.items):
            raise UsageFault(
                f"{home.notes} holds clips of other videos, of none that is given now",
                "name another folder, or --overwrite",
            )
        return ledger

    def todo(self, ledger: Ledger, retry_quarantined: bool = False) -> Todo:
        """The inputs that are not done."""
        return ledger.todo(self.found.items, self.sizes, retry_quarantined)


def blank(home: Home) -> Ledger:
    """The notes of a folder that is made anew. UsageFault where something else than an extraction lies there."""
    Ledger(home.notes, clips=home.clips).load()
    return Ledger(home.notes, clips=home.clips)


def size_of(item: Item) -> int:
    """Bytes of an input; by them a rerun notices that it changed. -1 where there is no file."""
    if item.stored_bytes is not None:
        return item.stored_bytes
    try:
        return os.stat(item.path).st_size
    except OSError:
        return -1


def tools(settings: Settings, items: Iterable[Item]) -> Tools:
    """The ffmpeg that is there, where one is needed, and the limits of a worker."""
    timeout_s = 60.0 + 6 * settings.window_s
    largest = max([Tools.file_bytes, *(item.stored_bytes or 0 for item in items)])
    if settings.decoder == "pyav" or settings.images:
        return Tools(clip_timeout_s=timeout_s, file_bytes=largest)
    path = binary.find()
    return Tools(path, binary.version(path), timeout_s, file_bytes=largest)


def num_workers(found: inputs.Inputs, out: Place) -> int:
    """One per core; two where half of the time is waiting for a store."""
    is_remote = isinstance(out, Remote) or any(item.is_remote for item in found.items)
    return _num_cores() * (2 if is_remote else 1)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
