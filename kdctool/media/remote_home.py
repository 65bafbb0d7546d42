"""An output folder in a store. Its notes are files of this machine while a command works, and go there as they grow.

Content comes before what speaks of it: clips, then the notes of them, then the manifest, and done.json last.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdctool.errors import EnvironmentFault
from kdctool.files import LOCK, PARTIAL
from kdctool.media import parts
from kdctool.media.clip_store import CLIPS, RemoteClips
from kdctool.media.ledger import DONE, DUPLICATES, LEDGER, MANIFEST, OWN, QUARANTINE
from kdctool.media.parts import Part
from kdctool.media.tail import SEGMENTS, Tail, segments
from kdctool.places import Missing, Place, Remote, many
from kdctool.places.lock import locked
from kdctool.places.mirror import Mirror

_FIRST_LINE = 4096
_FEW = 5
_ATTEMPTS = 4


class RemoteHome:
    """The place, and the folder `notes` that stands for it."""

    def __init__(self, place: Remote, notes: Path) -> None:
        self.place: Place = place
        self.remote, self.notes = place, notes
        self.clips = RemoteClips(place)
        self._mirror = Mirror(place, notes)
        self._seen: Any = None
        """What was there when it was pulled."""
        self._ledgers: set[str] = set()
        """Parts' ledgers that are there, or notes of them."""
        self._starts: dict[str, int] = {}
        self._tail: Tail | None = None

    def pull(self, part: Part | None) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                self._pull(part)
                return
            except Missing:  # Another part that ends, or merges, removed its notes after they were listed.
                self._seen = None
                if attempt + 1 == _ATTEMPTS:
                    raise

    def _pull(self, part: Part | None) -> None:
        children = self.remote.children()
        notes = (self.remote / SEGMENTS).files() if SEGMENTS in children else {}
        listed = {name: stored.stamp for name, stored in children.items() if not name.startswith(LOCK)}
        seen = (part, listed, {name: stored.stamp for name, stored in notes.items()})
        if seen == self._seen:
            return
        self._mirror.clear()
        ours = {*OWN, SEGMENTS}
        foreign = [n for n in listed if n not in ours and not n.endswith(PARTIAL) and not parts.is_part_file(n)]
        for name in foreign[:_FEW]:  # The ledger says what it thinks of them.
            (self.notes / name[:100]).touch()
        following = segments(notes)
        ledgers = {n for n in {*listed, *following} if parts.is_part_file(n)}
        others = {name for name in ledgers if part is not None and name != part.ledger}
        whole = {name for name in (set(OWN) - {CLIPS}) | ledgers if name in listed} - others
        self._mirror.pull(sorted(whole))
        for ledger in following.keys() - others:
            self._append(ledger, following[ledger])
        for name in others:
            self._stub(name, name in listed, following.get(name, []))
        self._starts = {path.name: path.stat().st_size for path in self.notes.iterdir()}
        self._ledgers = ledgers
        self.clips.refresh()
        self._seen = seen

    def _append(self, ledger: str, names: Sequence[str]) -> None:
        with open(self.notes / ledger, "ab") as file:
            for first in range(0, len(names), 32):
                for data in many(lambda name: (self.remote / SEGMENTS / name).read(), names[first : first + 32]):
                    file.write(data)

    def _stub(self, name: str, is_there: bool, names: Sequence[str]) -> None:
        """Of another part's notes: their first line, which has its settings, and whether they are complete."""
        place = self.remote / name if is_there else self.remote / SEGMENTS / names[0]
        line = place.read(0, _FIRST_LINE).partition(b"\n")[0] + b"\n"
        is_complete = is_there and not names and place.read(-len(parts.COMPLETE)) == parts.COMPLETE
        (self.notes / name).write_bytes(line + (parts.COMPLETE if is_complete else b""))

    @contextmanager
    def held(self, part: Part | None) -> Iterator[None]:
        others = re.escape(part.lock) if part else r"\.lock-\d+-of-\d+"
        with locked(self.remote, part.lock if part else LOCK, f"{re.escape(LOCK)}|{others}"):
            try:
                if part:
                    self.pull(part)
                    parts.check_count(self.notes, part)
                yield
            except BaseException:
                with suppress(EnvironmentFault):  # What went wrong first is what is told.
                    self._stop()
                raise
            else:
                self._stop()

    def begun(self, part: Part | None) -> None:
        name = part.ledger if part else LEDGER
        self._mirror.drop([DONE])
        self._tail = Tail(self.remote, self.notes / name, self._starts.get(name, 0))
        self._tail.start()
        if part is None:  # The ledger took them over, and they have been sent with its own lines.
            self._drop_parts()

    def _drop_parts(self) -> None:
        gone = sorted(name for name in self._ledgers if not (self.notes / name).exists())
        self._mirror.drop(gone)
        for name in gone:
            (self.remote / SEGMENTS / name).remove_tree()

    def beat(self) -> None:
        if self._tail is not None:
            self._tail.check()

    def _stop(self) -> None:
        tail, self._tail = self._tail, None
        if tail is not None:
            tail.stop()

    def ended(self, part: Part | None) -> None:
        self._stop()
        self._seen = None
        if part:
            if (self.notes / part.ledger).exists():
                self._mirror.push(part.ledger)
                (self.remote / SEGMENTS / part.ledger).remove_tree()
            return
        self._mirror.push(MANIFEST, QUARANTINE, LEDGER, DUPLICATES)
        (self.remote / SEGMENTS).remove_tree()
        self._drop_parts()
        self._mirror.push(DONE)

    def forget(self) -> None:
        self._mirror.drop([DONE])
        there = self.remote.children()
        written = {*OWN} - {CLIPS}
        self._mirror.drop([n for n in there if n in written or (parts.is_part_file(n) and not n.startswith(LOCK))])
        (self.remote / SEGMENTS).remove_tree()
        self.clips.forget()
        self._seen = None
