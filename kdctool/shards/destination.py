"""Where shards go: a folder of this machine, or one in a store, for which a folder of this machine stands.

There lie the record and the index as they are in the store, and for each tar a file of its size without content. A tar
is written here, sent, recorded there, and gives its bytes free.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from kdctool.errors import UsageFault
from kdctool.files import LOCK
from kdctool.files import locked as locked_here
from kdctool.places import Place, Remote
from kdctool.places.lock import locked
from kdctool.places.mirror import Mirror, spoken_of
from kdctool.places.scratch import scratch
from kdctool.shards import foreign, index
from kdctool.shards.building import PLAN

_RECORD = ".tar.json"


class Destination:
    """A folder of this machine."""

    one_by_one = False
    """Whether only one tar lies here at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def held(self) -> AbstractContextManager[None]:
        """The folder, against other commands."""
        return locked_here(self.folder)

    def pull(self) -> None:
        """Bring the folder up to what the place holds now."""

    def begun(self) -> None:
        """A plan was recorded in the folder, and what it does not need was removed."""

    def written(self, name: str) -> None:
        """A tar is complete in the folder; its record is not."""

    def recorded(self, name: str) -> None:
        """A tar's record is in the folder."""

    def finished(self) -> None:
        """The index is in the folder, and the record is gone."""


class RemoteDestination(Destination):
    """A folder in a store."""

    one_by_one = True

    def __init__(self, remote: Remote, folder: Path) -> None:
        super().__init__(folder)
        self.remote, self._mirror = remote, Mirror(remote, folder)

    @contextmanager
    def held(self) -> Iterator[None]:
        with locked(self.remote, LOCK, r"\.lock"):
            self.pull()
            yield

    def pull(self) -> None:
        self._mirror.clear()
        there = self.remote.children()
        for name, stored in there.items():
            if name.endswith(".tar"):
                _hollow(self.folder / name, stored.size)
        recorded = self._records() if index.BUILDING in there else []
        if f"{index.BUILDING}/{PLAN}" not in recorded:  # The record went first, or was not yet there.
            recorded = []
        self._mirror.pull([name for name in (index.INDEX,) if name in there] + recorded)

    def _records(self) -> list[str]:
        names = (self.remote / index.BUILDING).children()
        return [f"{index.BUILDING}/{name}" for name in names if name == PLAN or name.endswith(_RECORD)]

    def begun(self) -> None:
        kept = sorted(path.name for path in (self.folder / index.BUILDING).glob(f"*{_RECORD}"))
        records = [f"{index.BUILDING}/{name}" for name in kept]
        plan = f"{index.BUILDING}/{PLAN}"
        self._mirror.drop([name for name in self._records() if name not in (plan, *records)])
        self._mirror.push(*records, plan)
        tars = [name for name in self.remote.children() if name.endswith(".tar")]
        here = {path.name for path in foreign.tars(self.folder)}
        self._mirror.drop([index.INDEX])
        self._mirror.drop([name for name in tars if name not in here])

    def written(self, name: str) -> None:
        (self.remote / name).upload(self.folder / name)

    def recorded(self, name: str) -> None:
        self._mirror.push(f"{index.BUILDING}/{name}.json")
        path = self.folder / name
        _hollow(path, path.stat().st_size)

    def finished(self) -> None:
        self._mirror.push(index.INDEX)
        self._mirror.drop([f"{index.BUILDING}/{PLAN}"])
        self._mirror.drop(self._records())


def _hollow(path: Path, size: int) -> None:
    """A file of that size that takes no place on the disk."""
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        os.truncate(file.fileno(), size)


@contextmanager
def opened(place: Place) -> Iterator[Destination]:
    """The folder for shards at a place; `pull` or `held` come before one looks into it."""
    if isinstance(place, Path):
        if place.exists() and not place.is_dir():
            raise UsageFault(f"{place} is not a folder", "name a new or an empty folder")
        yield Destination(place)
        return
    if not place.bucket.kind():
        raise UsageFault(f"there is no bucket {place.bucket}", "create it first: kdctool makes folders only")
    with scratch() as folder, spoken_of(folder / "shards", place):
        yield RemoteDestination(place, folder / "shards")
