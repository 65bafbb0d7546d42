"""The output folder of an extraction: on this machine, or in a store, with its notes mirrored on this machine."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from kdctool.errors import UsageFault
from kdctool.files import locked
from kdctool.media import parts
from kdctool.media.clip_store import ClipStore, LocalClips
from kdctool.media.ledger import forget
from kdctool.media.parts import Part
from kdctool.media.remote_home import RemoteHome
from kdctool.places import Place, Refused
from kdctool.places.mirror import spoken_of
from kdctool.places.scratch import scratch


class Home(Protocol):
    """An output folder as the stage sees it."""

    place: Place
    """Where the workers put clips, and what the folder is called."""
    notes: Path
    """The folder in which the ledger reads and writes."""

    @property
    def clips(self) -> ClipStore:
        """How one looks for clips."""
        ...

    def pull(self, part: Part | None) -> None:
        """Bring the notes up to what the place holds now; of other parts only whether they are done."""
        ...

    def held(self, part: Part | None) -> AbstractContextManager[None]:
        """The folder, against other commands; a part shares it with other parts. InUse when another one has it."""
        ...

    def begun(self, part: Part | None) -> None:
        """The ledger is open: from here on its notes are kept in the place, too."""
        ...

    def beat(self) -> None:
        """Raise what went wrong while notes were sent."""
        ...

    def ended(self, part: Part | None) -> None:
        """The ledger is closed: what it wrote goes to the place, done.json last."""
        ...

    def forget(self) -> None:
        """Delete what earlier extractions wrote, and nothing else."""
        ...


class LocalHome:
    """A folder of this machine: its notes are its own."""

    def __init__(self, out: Path) -> None:
        self.place: Place = out
        self.notes = out
        self.clips = LocalClips(out)

    def pull(self, part: Part | None) -> None:
        pass

    @contextmanager
    def held(self, part: Part | None) -> Iterator[None]:
        if part is None:
            with locked(self.notes):
                yield
        else:
            with locked(self.notes, shared=True), locked(self.notes, part.lock):
                parts.check_count(self.notes, part)
                yield

    def begun(self, part: Part | None) -> None:
        pass

    def beat(self) -> None:
        pass

    def ended(self, part: Part | None) -> None:
        pass

    def forget(self) -> None:
        forget(self.notes)
        self.clips.forget()


@contextmanager
def open_home(place: Place) -> Iterator[Home]:
    """The output folder at a place; its notes are not pulled yet. UsageFault where the bucket is not there."""
    if isinstance(place, Path):
        yield LocalHome(place)
        return
    with suppress(Refused):  # Who may write into a folder may not always look at its bucket.
        if not place.bucket.kind():
            raise UsageFault(f"there is no bucket {place.bucket}", "create it first: kdctool makes folders only")
    with scratch() as folder, spoken_of(folder / "notes", place):
        yield RemoteHome(place, folder / "notes")
