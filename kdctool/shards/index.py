"""The index of a folder of shards: which clips there are, and where each member of each clip lies.

`index.json` is written last, so a folder that has one is complete. A folder of tars that others made is indexed
once, on first use.
"""

import bisect
import copy
import fcntl
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdctool.errors import DataFault, EnvironmentFault, VerificationFault, quoted
from kdctool.files import canonical_json, digest, write_bytes
from kdctool.progress import say
from kdctool.shards import foreign
from kdctool.shards.entry import Entry, from_json, to_json

INDEX = "index.json"
BUILDING = ".building"
"""Folder inside unfinished shards that records which of them are done; gone when index.json is written."""
FORMAT = "kdctool-shards-1"


class Split:
    """The clips of one split, numbered through its shards in order. Small enough to be sent to workers."""

    def __init__(self, name: str, folder: Path, entries: Sequence[Entry]) -> None:
        self.name, self.folder = name, folder
        self.shards = [entry.name for entry in entries]
        self.sizes = [len(entry) for entry in entries]
        self._ends = np.cumsum(self.sizes).tolist()
        layouts: dict[tuple[str, ...], int] = {}
        kinds = [[layouts.setdefault(names, len(layouts)) for names in entry.layouts] for entry in entries]
        self._layouts = list(layouts)
        self._positions = [{suffix: place for place, suffix in enumerate(names)} for names in self._layouts]
        self._layout = _join(
            [np.array(kind or [0], dtype=np.uint16)[e.layout] for kind, e in zip(kinds, entries, strict=True)]
        )
        counts = np.array([len(names) for names in self._layouts] or [0], dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(counts[self._layout])])[:-1]
        self._keys = _join([entry.keys for entry in entries], np.bytes_)
        self._offsets = _join([entry.offsets for entry in entries], np.int64)
        self._lengths = _join([entry.lengths for entry in entries], np.uint32)
        self._crc = _join([entry.crc for entry in entries], np.uint32)

    def __len__(self) -> int:
        return len(self._layout)

    def key(self, i: int) -> str:
        """The clip's uid (the key of its members)."""
        return str(self._keys[self._clip(i)].decode("utf-8", "surrogateescape"))

    def members(self, i: int) -> dict[str, tuple[int, int]]:
        """Member suffix -> (offset, length) in the clip's tar."""
        i = self._clip(i)
        first = int(self._first[i])
        end = first + len(self._layouts[self._layout[i]])
        places = zip(self._offsets[first:end].tolist(), self._lengths[first:end].tolist(), strict=True)
        return dict(zip(self._layouts[self._layout[i]], places, strict=True))

    def suffixes(self, i: int) -> tuple[str, ...]:
        """Member suffixes of the clip; clips of one kind share the tuple."""
        return self._layouts[self._layout[self._clip(i)]]

    def places(self, i: int, suffixes: Iterable[str]) -> list[tuple[str, int, int, int]]:
        """(suffix, offset, length, crc32) of members of a clip; DataFault when the clip has no such member."""
        i = self._clip(i)
        positions, first = self._positions[self._layout.item(i)], self._first.item(i)
        offsets, lengths, crc = self._offsets, self._lengths, self._crc
        found = []
        for suffix in suffixes:
            if suffix not in positions:
                raise DataFault(
                    f"{self.path(i).name}: clip {self.key(i)} has no member '{suffix}', only {', '.join(positions)}",
                    "make the shards from clips that have it, or choose a task that needs no such member",
                )
            member = first + positions[suffix]
            # item() gives Python's own integers, in half the time of int(array[member]).
            found.append((suffix, offsets.item(member), lengths.item(member), crc.item(member)))
        return found

    def having(self, holds: Callable[[Sequence[str]], bool]) -> np.ndarray:
        """For each clip whether `holds` of its member suffixes, (clips,) bool; asks once per kind of clip."""
        return np.array([holds(names) for names in self._layouts] or [False])[self._layout]

    def subset(self, keep: np.ndarray) -> "Split":
        """The clips for which `keep`, (clips,) bool, is true; in order, in the same shards."""
        part = copy.copy(self)
        kept = np.concatenate([[0], np.cumsum(keep)])[np.concatenate([[0], self._ends]).astype(np.int64)]
        part.sizes, part._ends = np.diff(kept).tolist(), kept[1:].tolist()
        part._layout, part._first, part._keys = self._layout[keep], self._first[keep], self._keys[keep]
        return part

    def shard(self, i: int) -> int:
        """Which of the split's shards holds the clip."""
        return bisect.bisect_right(self._ends, self._clip(i))

    def path(self, i: int) -> Path:
        """The tar that holds the clip."""
        return self.folder / self.shards[self.shard(i)]

    def _clip(self, i: int) -> int:
        if not 0 <= i < len(self._layout):
            raise IndexError(f"clip {i} of a split of {len(self)} clips")
        return i


@dataclass(frozen=True)
class Index:
    """A folder of shards."""

    folder: Path
    labels: tuple[str, ...]
    """The label list; a clip's labels are names of it."""
    multi_label: bool
    settings: dict[str, Any]
    """frames, size, sample_rate, window_s, audio: what extraction made."""
    entries: tuple[Entry, ...]
    made_from: dict[str, Any] | None = None
    """Digests and settings that made the shards; None for tars that others made."""

    @functools.cached_property
    def splits(self) -> dict[str, int]:
        """Clips per split."""
        counts: dict[str, int] = {}
        for entry in self.entries:
            counts[entry.split] = counts.get(entry.split, 0) + len(entry)
        return counts

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over the content: names, splits and hashes of the shards, labels and settings."""
        shards = [[entry.name, entry.split, len(entry), entry.sha256] for entry in self.entries]
        return digest([shards, list(self.labels), self.multi_label, self.settings])

    def split(self, name: str) -> Split:
        """The clips of one split; DataFault names the splits that exist."""
        if name not in self.splits:
            there = ", ".join(f"{split} ({count} clips)" for split, count in self.splits.items())
            raise DataFault(f"{self.folder} has no split '{name}'", f"it has: {there}")
        return Split(name, self.folder, [entry for entry in self.entries if entry.split == name])


def load(folder: Path, index_foreign: bool = True) -> Index:
    """Open a folder of shards. Every tar of the index must be there with its indexed size, and no other.

    DataFault says which commands make shards when there are none; VerificationFault names a missing, short or
    extra tar. Tars without an index are indexed once, unless `index_foreign` is off.
    """
    folder = Path(folder)
    path = folder / INDEX
    if not path.is_file():
        tars = foreign.tars(folder)
        if (folder / BUILDING).is_dir():
            raise DataFault(
                f"{folder} is not complete: kdctool shard was stopped", "run the same kdctool shard command again"
            )
        if not tars or not index_foreign:
            lacks = "no such folder" if not folder.is_dir() else "no index.json" if tars else "no tar and no index.json"
            raise DataFault(
                f"there are no shards in {folder}: {lacks}",
                f"kdctool extract VIDEOS out/, then kdctool shard out/ {quoted(folder)}",
            )
        with _alone(folder):  # the ranks of one run come here together: one of them indexes
            if not path.is_file():
                return _index_foreign(folder, tars)
    index = read(folder)
    check_present(index)
    return index


def read(folder: Path) -> Index:
    """Parse index.json without looking at the tars."""
    path = folder / INDEX
    try:
        value = json.loads(path.read_bytes())
        if value["format"] != FORMAT:
            raise DataFault(
                f"{path} has format '{value['format']}', this kdctool reads '{FORMAT}'", "use the kdctool that wrote it"
            )
        index = Index(
            folder=folder,
            labels=tuple(str(label) for label in value["labels"]),
            multi_label=bool(value["multi_label"]),
            settings=dict(value["settings"]),
            entries=tuple(from_json(entry, str(path)) for entry in value["shards"]),
            made_from=value["made_from"],
        )
    except OSError as error:
        raise DataFault(f"cannot read {path}: {error.strerror}", "kdctool shard makes it") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _broken(path, f"{type(error).__name__} {error}") from error
    if value.get("digest") != index.digest or value.get("splits") != index.splits:
        raise _broken(path, "its digest does not fit its content")
    return index


def write(index: Index) -> None:
    """Write index.json atomically, one line per shard; equal shards give equal bytes."""
    head = {
        "format": FORMAT,
        "labels": list(index.labels),
        "multi_label": index.multi_label,
        "settings": index.settings,
        "made_from": index.made_from,
        "splits": index.splits,
        "digest": index.digest,
    }
    lines = ",\n".join(f"{canonical_json(key)}:{canonical_json(value)}" for key, value in head.items())
    shards = ",\n".join(canonical_json(to_json(entry)) for entry in index.entries)
    write_bytes(index.folder / INDEX, f'{{{lines},\n"shards":[\n{shards}\n]}}\n'.encode())


def check_present(index: Index) -> None:
    """The cheap check before anything is read: one stat per shard. `kdctool verify` reads every byte."""
    again = "fetch or make it again, then kdctool verify"
    for entry in index.entries:
        path = index.folder / entry.name
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise VerificationFault(f"{path} is missing; the index counts {len(entry)} clips in it", again) from error
        if size != entry.bytes:
            kind = "short" if size < entry.bytes else "too long"
            raise VerificationFault(f"{path} is {kind}: {size} bytes, the index says {entry.bytes}", again)
    extra = sorted({path.name for path in foreign.tars(index.folder)} - {entry.name for entry in index.entries})
    if extra:
        advice = (
            "delete index.json to index the folder anew" if index.made_from is None else "move it out of the folder"
        )
        raise VerificationFault(f"{index.folder / extra[0]} is not in the index ({len(extra)} such tars)", advice)


def _index_foreign(folder: Path, tars: list[Path]) -> Index:
    say(f"{folder} has no {INDEX}; indexing {len(tars)} tars once")
    index = Index(folder, **foreign.index(tars))
    try:
        write(index)
    except EnvironmentFault as error:
        say(f"the index of {folder} stays in memory and is made again next time: {error.cause}")
    return index


def _broken(path: Path, cause: str) -> DataFault:
    return DataFault(f"{path} is damaged: {cause}", "delete it, and run the same kdctool shard command again")


def _join(parts: list[np.ndarray], kind: Any = np.uint16) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
