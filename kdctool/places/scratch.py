"""Folders for what is on its way. They go with the process; where it was killed, the next one clears up after it."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kdctool.files import disk_faults

_PREFIX = "kdctool-scratch-"
_HOLD = ".held"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder in TMPDIR that is gone afterwards."""
    parent = Path(tempfile.gettempdir())
    _clear(parent)
    with disk_faults(parent):
        fresh = Path(tempfile.mkdtemp(prefix="kdctool-new-", dir=parent))
        hold = open(fresh / _HOLD, "w")  # noqa: SIM115
    fcntl.flock(hold, fcntl.LOCK_EX)
    folder = fresh.with_name(_PREFIX + fresh.name.removeprefix("kdctool-new-"))
    fresh.rename(folder)  # Under this name it may be cleared by others, who find it held.
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        hold.close()


def _clear(parent: Path) -> None:
    """Remove the folders of processes that are gone; only those of this user."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.getuid():
                continue
            with open(folder / _HOLD, "r+") as hold:
                if _is_free(hold):
                    shutil.rmtree(folder, ignore_errors=True)


def _is_free(hold: IO[str]) -> bool:
    try:
        fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
