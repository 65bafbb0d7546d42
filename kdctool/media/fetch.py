"""Inputs that lie in a store: a worker copies one to this machine just before it decodes it, and deletes the copy."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kdctool.errors import EnvironmentFault
from kdctool.media.quarantine import Rejected
from kdctool.media.settings import Item
from kdctool.places import Missing, Refused, Remote, Unreachable, located

REASONS_OF_A_STORE = frozenset({"io_error", "missing", "no_permission"})
"""Why an object could not be fetched; or the whole store is away."""
_LONGEST_SUFFIX = 16


class Fetcher:
    """Holds the copy of one object at most, in `folder`. `heard` is told while one comes."""

    def __init__(self, heard: Callable[[], None] = lambda: None) -> None:
        self.folder, self.heard = Path(), heard
        self._url, self._copy = "", ""

    def local(self, item: Item) -> str:
        """The path under which the input can be opened; Rejected where it cannot be fetched."""
        if not item.is_remote:
            return item.path
        if self._url != item.path:
            self.drop()
            self._fetch(located(item.path))
            self._url = item.path
        return self._copy

    def drop(self) -> None:
        """Delete the copy."""
        if self._copy:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._url, self._copy = "", ""

    def _fetch(self, place: Remote) -> None:
        suffix = os.path.splitext(place.name)[1]
        # The suffix is a hint to the demuxer, as of a file of this machine; the rest of the name may be too long.
        path = self.folder / ("input" + (suffix if len(os.fsencode(suffix)) <= _LONGEST_SUFFIX else ""))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._copy = str(path)
        try:
            place.download(path, self.heard)
        except Missing as error:
            raise Rejected("is_folder" if _is_folder(place) else "missing", "No such file or directory") from error
        except Refused as error:
            raise Rejected("no_permission", error.cause) from error
        except Unreachable as error:
            raise Rejected("io_error", error.cause) from error


def _is_folder(place: Remote) -> bool:
    try:
        return place.kind() == "folder"
    except EnvironmentFault:
        return False
