"""Writes one shard: a plain ustar tar through webdataset's writer, the same bytes every time, complete or absent."""

import functools
import importlib
import importlib.util
import sys
import types
import zlib
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from kdctool.errors import EnvironmentFault
from kdctool.files import whole_file
from kdctool.shards.entry import Entry, collect
from kdctool.shards.tar import BLOCK

Clip = tuple[str, list[tuple[str, bytes]]]
"""A key and its members: (suffix, bytes) in the order of the tar."""


@functools.cache
def tar_writer() -> Any:
    """webdataset's TarWriter, without the package's __init__, which imports torch (seconds) where it is installed."""
    if "webdataset" in sys.modules:
        return importlib.import_module("webdataset.writer").TarWriter
    spec = importlib.util.find_spec("webdataset")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentFault("the package webdataset is not installed", "pip install webdataset")
    bare = types.ModuleType("webdataset")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["webdataset"] = bare
    try:
        return importlib.import_module("webdataset.writer").TarWriter
    finally:  # whoever imports webdataset later gets the whole package
        for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
            del sys.modules[name]


def write_shard(path: Path, split: str, clips: Iterable[Clip]) -> Entry:
    """Write a tar, complete or not at all. A full disk leaves nothing behind (exit 4)."""
    with whole_file(path) as file:
        tee = _Tee(file)
        # mtime 0, uid and gid 0, one mode and no user name: bytes depend on the clips alone.
        with tar_writer()(tee, user="", group="", mode=0o644, encoder=False, mtime=0) as writer:
            members = list(_written(writer, clips))
    return collect(path.name, split, tee.size, tee.sha256.hexdigest(), members)


def _written(writer: Any, clips: Iterable[Clip]) -> Iterator[tuple[str, str, int, int, int]]:
    place = 0
    for key, members in clips:
        for suffix, data in members:
            # One call per member: within a call webdataset sorts by name, and json shall come first.
            writer.write({"__key__": key, suffix: data})
            yield key, suffix, place + BLOCK, len(data), zlib.crc32(data)
            place += BLOCK + -(-len(data) // BLOCK) * BLOCK


class _Tee:
    """A file that hashes what it is given."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.size = file, sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.file.write(data)
