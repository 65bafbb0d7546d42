"""What the pool and its workers say to each other."""

from dataclasses import dataclass

from kdctool.media.rows import Row
from kdctool.media.settings import Item


@dataclass(frozen=True)
class Task:
    """To a worker: one input, the starts (ms) that are done, and those whose fast decoder died."""

    item: Item
    done: frozenset[int] = frozenset()
    with_ffmpeg: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Ready:
    """From a worker, once: it has started."""


@dataclass(frozen=True)
class Begin:
    """From a worker: work on this start (ms) begins. Should the worker die, it is to blame."""

    start_ms: int


@dataclass(frozen=True)
class Fetching:
    """From a worker: more of a remote input has come. Its time for the clip begins anew."""


@dataclass(frozen=True)
class Made:
    """From a worker: the row of a clip whose files are in place, or of a failure."""

    row: Row


@dataclass(frozen=True)
class End:
    """From a worker: the input is done."""


@dataclass(frozen=True)
class Broken:
    """From a worker: the output cannot be written; no input is to blame."""

    error: Exception
