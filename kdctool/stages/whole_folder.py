"""Folders that are either complete or absent: written beside their place, synced, renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from kdctool.errors import UsageFault
from kdctool.files import PARTIAL, disk_faults, fsync_folder, sha256_file, write_json

MANIFEST = "manifest.json"


def refuse_existing(out: Path, overwrite: bool) -> None:
    """UsageFault when something lies at `out` that may not be replaced; only a folder made here ever may."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UsageFault(f"{out} exists already", "--overwrite replaces it, or choose another folder")
    if not (out / MANIFEST).is_file():
        raise UsageFault(f"{out} is not an export or import, so --overwrite will not delete it", "choose another place")


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `out` at the end; on any error nothing is left."""
    partial = out.with_name(out.name + PARTIAL)
    with disk_faults(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            _sync(partial)
            _replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def write_manifest(folder: Path, files: list[str]) -> dict[str, int]:
    """manifest.json with the sha256 of each file; returns the size of everything in the folder."""
    write_json(folder / MANIFEST, {"files": {name: sha256_file(folder / name) for name in sorted(files)}})
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    fsync_folder(folder)


def _replace(partial: Path, out: Path) -> None:
    """Put the finished folder in place; an older one is only deleted once the new one stands."""
    old = out.with_name(f"{out.name}.old{PARTIAL}")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
    fsync_folder(out.absolute().parent)
