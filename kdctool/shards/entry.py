"""What the index knows of one shard: its hash, and where each member lies, in about 200 bytes a clip."""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdctool.errors import DataFault, VerificationFault
from kdctool.shards import tar

_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}\.tar")


@dataclass(frozen=True)
class Entry:
    """One shard of the index. n clips, M members in the order of the tar."""

    name: str
    split: str
    bytes: int
    sha256: str
    layouts: tuple[tuple[str, ...], ...]
    """The different lists of member suffixes that occur."""
    layout: np.ndarray
    """(n,) uint16: which of `layouts` a clip has."""
    keys: np.ndarray
    """(n,) bytes: the clips' keys, UTF-8."""
    offsets: np.ndarray
    """(M,) int64: where a member's bytes begin."""
    lengths: np.ndarray
    """(M,) uint32: how many bytes a member has."""
    crc: np.ndarray
    """(M,) uint32: crc32 of a member's bytes."""

    def __len__(self) -> int:
        return len(self.layout)

    def member_names(self) -> list[str]:
        """KEY.SUFFIX of every member, in the order of the tar."""
        keys = (key.decode("utf-8", "surrogateescape") for key in self.keys.tolist())
        return [f"{key}.{suffix}" for key, kind in zip(keys, self.layout, strict=True) for suffix in self.layouts[kind]]


def collect(name: str, split: str, size: int, sha256: str, members: Iterable[tuple[str, str, int, int, int]]) -> Entry:
    """The entry of a shard from (key, suffix, offset, length, crc32) of its members, in order."""
    keys: list[str] = []
    suffixes: list[list[str]] = []
    numbers: list[tuple[int, int, int]] = []
    for key, suffix, offset, length, crc in members:
        if not keys or keys[-1] != key:
            keys.append(key)
            suffixes.append([])
        if suffix in suffixes[-1]:
            raise VerificationFault(f"{name}: clip {key!a} has two members '{suffix}', at offset {offset}")
        suffixes[-1].append(suffix)
        numbers.append((offset, length, crc))
    known: dict[tuple[str, ...], int] = {}
    layout = [known.setdefault(tuple(names), len(known)) for names in suffixes]
    table = np.array(numbers, dtype=np.int64).reshape(-1, 3)
    return Entry(
        name=name,
        split=split,
        bytes=size,
        sha256=sha256,
        layouts=tuple(known),
        layout=np.array(layout, dtype=np.uint16),
        keys=np.array([key.encode("utf-8", "surrogateescape") for key in keys], dtype=np.bytes_),
        offsets=table[:, 0],
        lengths=table[:, 1].astype(np.uint32),
        crc=table[:, 2].astype(np.uint32),
    )


def scanned(path: Path, split: str) -> Entry:
    """The entry of a tar as it lies on disk: every header is parsed, every byte is hashed."""
    members = tar.scan(path)
    sha256, sums = tar.hashes(path, members)
    found = []
    for member, crc in zip(members, sums, strict=True):
        parts = tar.key_and_suffix(member.name)
        if parts is not None:  # WebDataset passes over files without a dot, too
            found.append((*parts, member.offset, member.length, crc))
    return collect(path.name, split, path.stat().st_size, sha256, found)


def to_json(entry: Entry) -> dict[str, Any]:
    """Plain values for index.json; equal shards give equal values."""
    padded = -(-entry.lengths.astype(np.int64) // tar.BLOCK) * tar.BLOCK
    ends = np.concatenate([[0], (entry.offsets + padded)[:-1]]) if len(padded) else padded
    gaps = entry.offsets - ends
    value = {
        "name": entry.name,
        "split": entry.split,
        "clips": len(entry),
        "bytes": entry.bytes,
        "sha256": entry.sha256,
        "suffixes": [list(names) for names in entry.layouts],
        "keys": b"\n".join(entry.keys.tolist()).decode("utf-8", "surrogateescape"),
        "lengths": _pack(entry.lengths, "<u4"),
        "crc32": _pack(entry.crc, "<u4"),
    }
    if len(entry.layouts) > 1:
        value["layout"] = _pack(entry.layout, "<u2")
    if (gaps != tar.BLOCK).any():
        value["gaps"] = _pack(gaps, "<u4")
    return value


def from_json(value: Any, origin: str) -> Entry:
    """Inverse of `to_json`; DataFault when the values do not fit together."""
    try:
        return _from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataFault(
            f"{origin} is damaged: {type(error).__name__} {error}",
            "delete it, and run the same kdctool shard command again",
        ) from error


def _from_json(value: dict[str, Any]) -> Entry:
    if not _SHARD_NAME.fullmatch(value["name"]):
        raise ValueError(f"a shard cannot be called {value['name']!r}")
    layouts = tuple(tuple(str(name) for name in names) for names in value["suffixes"])
    count, size = int(value["clips"]), int(value["bytes"])
    layout = _unpack(value["layout"], "<u2") if "layout" in value else np.zeros(count, dtype=np.uint16)
    lengths, crc = _unpack(value["lengths"], "<u4"), _unpack(value["crc32"], "<u4")
    gaps = _unpack(value["gaps"], "<u4").astype(np.int64) if "gaps" in value else np.full(len(lengths), tar.BLOCK)
    text = value["keys"].encode("utf-8", "surrogateescape")
    keys = np.array(text.split(b"\n") if count else [], dtype=np.bytes_)
    if len(layout) != count or len(keys) != count or (count and int(layout.max()) >= len(layouts)):
        raise ValueError(f"{value['name']}: its lists do not hold {count} clips")
    total = int(np.array([len(names) for names in layouts], dtype=np.int64)[layout].sum()) if count else 0
    if not len(lengths) == len(crc) == len(gaps) == total:
        raise ValueError(f"{value['name']}: its lists do not hold {total} members")
    padded = -(-lengths.astype(np.int64) // tar.BLOCK) * tar.BLOCK
    offsets = np.cumsum(gaps + np.concatenate([[0], padded[:-1]])) if total else np.zeros(0, dtype=np.int64)
    if total and int(offsets[-1]) + int(lengths[-1]) > size:
        raise ValueError(f"{value['name']}: members lie beyond its {size} bytes")
    return Entry(
        value["name"], str(value["split"]), size, str(value["sha256"]), layouts, layout, keys, offsets, lengths, crc
    )


def _pack(values: np.ndarray, kind: str) -> str:
    if len(values) and int(values.max()) >= 1 << (8 * np.dtype(kind).itemsize):
        raise ValueError("a number of the index does not fit its type")
    return base64.b64encode(values.astype(kind).tobytes()).decode("ascii")


def _unpack(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=kind)
