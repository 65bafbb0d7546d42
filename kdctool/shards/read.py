"""Reads members of clips by offset: one pread each, no tar is walked, nothing is decoded.

A reader may be sent to other processes, forked or spawned: files are opened on first use, per process.
"""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault
from kdctool.shards.index import Split
from kdctool.shards.tar import BLOCK

_MAX_OPEN = 256
_ADVICE = "kdctool verify SHARDS finds every damaged shard"


class ShardReader:
    """Bytes of the clips of a split. `check` compares every member with its checksum of the index."""

    def __init__(self, split: Split, check: bool = True) -> None:
        self.split, self.check = split, check
        self._files: dict[int, int] = {}
        self._process = os.getpid()

    def read(self, i: int, suffixes: Iterable[str]) -> dict[str, bytes]:
        """The asked members of clip `i`. DataFault names the shard, the member and the offset of what is damaged."""
        handle = self._open(self.split.shard(i))
        return {place[0]: self._member(handle, i, *place) for place in self.split.places(i, suffixes)}

    def close(self) -> None:
        """Close this process's files; the next read opens them again."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    def _member(self, handle: int, i: int, suffix: str, offset: int, length: int, crc: int) -> bytes:
        # Bytes 124-135 of a header are the size in octal: another tar of the same name is noticed here. They are read
        # by themselves, because cutting them off the member would copy it.
        if _octal(os.pread(handle, 12, offset - BLOCK + 124)) not in (length, None):
            raise self._fault(i, suffix, offset, "another file lies there than the one that was indexed")
        data = os.pread(handle, length, offset)
        if len(data) != length:
            raise self._fault(i, suffix, offset, f"{len(data)} of {length} bytes are there")
        if self.check and zlib.crc32(data) != crc:
            raise self._fault(i, suffix, offset, "its bytes do not match the checksum of the index")
        return data

    def _open(self, shard: int) -> int:
        if self._process != os.getpid():  # after a fork: same numbers, but closing ours must not close the parent's
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            if len(self._files) >= _MAX_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            path = self.split.folder / self.split.shards[shard]
            self._files[shard] = _open_file(path)
        return self._files[shard]

    def _fault(self, i: int, suffix: str, offset: int, cause: str) -> DataFault:
        shard = self.split.path(i).name
        return DataFault(f"{shard}: member {self.split.key(i)}.{suffix} at offset {offset}: {cause}", _ADVICE)

    def __getstate__(self) -> dict[str, Any]:
        return {"split": self.split, "check": self.check, "_files": {}, "_process": -1}

    def __del__(self) -> None:
        if getattr(self, "_process", -1) == os.getpid():
            self.close()


def _open_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataFault(f"{path} cannot be opened: {error.strerror}", _ADVICE) from error


def _octal(field: bytes) -> int | None:
    """A size field; None where the size is not written in octal or stands in an extended header."""
    text = field.rstrip(b"\0 ")
    try:
        return int(text, 8)
    except ValueError:
        return None
