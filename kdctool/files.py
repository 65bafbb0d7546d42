"""Files that are either complete or absent: temporary name, sync, rename. And the hashes that prove it."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from kdctool.errors import EnvironmentFault

LOCK = ".lock"
PARTIAL = ".partial"
"""Suffix of everything that is still being written. A rerun may delete what carries it."""


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, ASCII escapes (names that are not UTF-8 survive)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_file(path: Path, needed: int = 0) -> Iterator[BinaryIO]:
    """Open a file for writing that stands there, synced, when the block ends, and leaves nothing behind when it fails.

    `needed` bytes are told where the disk is full.
    """
    partial = path.with_name(path.name + PARTIAL)
    with disk_faults(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically and durably."""
    with whole_file(path, needed=len(data)) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically; equal values give equal bytes."""
    write_bytes(path, (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=True) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def disk_faults(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full disk, a quota or a read-only place into an `EnvironmentFault` that says what is needed and free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place = existing_parent(path)
            free = size_text(shutil.disk_usage(place).free)
            needs = f", needs {size_text(needed)}" if needed else ""
            raise EnvironmentFault(
                f"no space left while writing {path}{needs}, {free} free in {place}",
                "free some space and run the same command again: it goes on where it stopped",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise EnvironmentFault(f"cannot write {path}: {error.strerror}", "choose a writable folder") from error
        raise


def existing_parent(path: Path) -> Path:
    """The nearest folder on the way up from `path` that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def size_text(num_bytes: float) -> str:
    """1536 -> '1.5 KB'; decimal steps of 1024, as `du -h` prints."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TB"


class InUse(EnvironmentFault):
    """Another process holds the folder."""


def _occupied(folder: Path, lock: Path, owner: str) -> tuple[str, str]:
    """Who holds a lock, and what to do: its `owner`, or a process that outlived it and has the file open still."""
    found = re.fullmatch(r"process (\d+) on (\S+)", owner)
    if found is None or found[2] != socket.gethostname() or _is_alive(int(found[1])):
        return f"{folder} is in use by {owner or 'another kdctool'}", "wait for it, or stop it"
    left = ", ".join(map(str, _having_open(lock)))
    if not left:
        return (
            f"process {found[1]}, which used {folder}, is gone, but what it started still holds {lock}",
            "wait a minute, and type the same command again",
        )
    return (
        f"process {found[1]}, which used {folder}, is gone; a process that it started holds {lock} still: {left}",
        f"wait until it ends, or end it: kill {left.replace(',', '')}",
    )


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # Another user's.
    return True


def _having_open(path: Path) -> list[int]:
    """Processes that have a file open, without this one, as far as /proc shows them."""
    found = []
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            process = int(handle.parts[2])
            if process != os.getpid() and process not in found and os.path.samefile(handle, path):
                found.append(process)
        except OSError:
            continue  # Closed meanwhile, or not ours to see.
    return sorted(found)


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, *, shared: bool = False) -> Iterator[None]:
    """Hold `folder` for this process; a second kdctool on the same folder ends with exit code 4.

    The lock belongs to the open file, so it vanishes with the process, however that ends. `shared` lets others in
    that share, too.
    """
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, "a+")  # noqa: SIM115
    try:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise InUse(*_occupied(folder, folder / name, file.read().strip())) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
    finally:
        file.close()
