"""What an output folder already holds, and the notes of a run under way: an interrupted run loses no finished clip.

While a run works, every row is appended to `.ledger.jsonl` after its clip's folder was renamed into place. At the
end the rows become manifest.jsonl and quarantine.jsonl, the ledger shrinks to which input made which rows, and
duplicates.json and done.json are written last. A part of an extraction (`parts`) appends to a file of its own, which
goes when the parts are merged.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from kdctool.errors import UsageFault
from kdctool.files import (
    LOCK,
    PARTIAL,
    canonical_json,
    digest,
    disk_faults,
    read_json,
    sha256_file,
    write_bytes,
    write_json,
)
from kdctool.media import duplicates, parts
from kdctool.media.clip_store import CLIPS, ClipStore, LocalClips
from kdctool.media.names import clip_folder, uid
from kdctool.media.parts import Part
from kdctool.media.rows import Row
from kdctool.media.settings import FLAG_OF_KEY, Item, Settings

LEDGER, MANIFEST, QUARANTINE, DONE = ".ledger.jsonl", "manifest.jsonl", "quarantine.jsonl", "done.json"
DUPLICATES = "duplicates.json"
OWN = (LEDGER, MANIFEST, QUARANTINE, DUPLICATES, DONE, CLIPS)
"""Everything that an extraction writes into its folder, next to the lock."""


class Ledger:
    """Rows by uid, and for each finished input its size and its uids.

    That of a part reads what is merged and its own notes, and writes its own notes; any other one reads all.
    `packed` clips need not be there. `clips` are in `out` unless told otherwise.
    """

    def __init__(
        self,
        out: Path,
        part: Part | None = None,
        packed: frozenset[str] = frozenset(),
        clips: ClipStore | None = None,
    ) -> None:
        self.out, self.part, self.packed = out, part, packed
        self.clips = clips or LocalClips(out)
        self.rows: dict[str, Row] = {}
        self.finished: dict[str, tuple[int, list[str]]] = {}
        self.started: dict[str, tuple[int, list[str]]] = {}
        """Inputs of which only some clips are there: a run was interrupted."""
        self.settings: dict[str, Any] | None = None
        self.duplicates: dict[str, Any] = {}
        self._recorded: list[dict[str, Any]] = []
        """The settings of all notes, those of other parts too."""
        self._unsure: list[str] = []
        self._file: Any = None

    def load(self) -> None:
        """Read what earlier runs left. UsageFault when the folder holds something else."""
        if not self.out.exists():
            return
        if not self.out.is_dir():
            raise UsageFault(f"{self.out} is a file", "name a folder that is new or empty")
        foreign = sorted(
            name
            for name in os.listdir(self.out)
            if name not in (*OWN, LOCK) and not name.endswith(PARTIAL) and not parts.is_part_file(name)
        )
        if foreign and not (self.out / LEDGER).exists() and not parts.ledgers(self.out):
            raise UsageFault(
                f"{self.out} is not empty and holds no extraction ({foreign[0]} ...)", "name a new or empty folder"
            )
        for line in _lines(self.out / MANIFEST):
            self.rows[line["uid"]] = line
        for line in _lines(self.out / LEDGER):
            self._replay(line)
        if (self.out / DONE).exists() and self.settings is None:
            self.settings = read_json(self.out / DONE)["settings"]
            self._recorded.append(self.settings)
        for path in parts.ledgers(self.out):
            if self.part is None or path.name == self.part.ledger:
                unsure, self._unsure = self._unsure, []  # A part's sync speaks for its own clips alone.
                for line in _lines(path):
                    self._replay(line)
                self._unsure = unsure + self._unsure
            else:
                self._recorded += [line["settings"] for line in islice(_lines(path), 1)]

    def _replay(self, line: dict[str, Any]) -> None:
        if "settings" in line:
            self.settings = line["settings"]
            self._recorded.append(self.settings)
        elif "row" in line:
            row = line["row"]
            self.rows[row["uid"]] = row
            size, uids = self.started.setdefault(line["input"], (line["bytes"], []))
            if size == line["bytes"]:
                uids.append(row["uid"])
            else:  # The file changed between two interrupted runs.
                self.started[line["input"]] = line["bytes"], [row["uid"]]
            self.finished.pop(line["input"], None)
            self._unsure.append(row["uid"])
        elif "uids" in line:
            self.finished[line["input"]] = line["bytes"], line["uids"]
            self.started.pop(line["input"], None)
        elif "synced" in line:
            self._unsure.clear()

    def check_settings(self, settings: Settings) -> None:
        """UsageFault that names every setting in which the folder differs."""
        for recorded in self._recorded:
            # An earlier version did not record what it had no option for: it did what the defaults do.
            there, now = Settings().record() | recorded, settings.record()
            keys = [key for key in sorted({*now, *there}) if now.get(key) != there.get(key)]
            told = [f"{FLAG_OF_KEY.get(key, key)} ({there.get(key)} there, {now.get(key)} now)" for key in keys]
            if told:
                raise UsageFault(
                    f"{self.out} holds clips of other settings: {', '.join(told)}",
                    "use the same, another folder, or --overwrite",
                )

    def todo(self, items: Iterable[Item], sizes: dict[str, int], retry: bool) -> list[tuple[Item, frozenset[int]]]:
        """The inputs that are not done, each with the starts (ms) of its clips that are. Looks, reads nothing."""
        wanted = []
        for item in items:
            size, uids = self.finished.get(item.key, (-2, []))
            known = [self.rows.get(name) for name in uids]
            again = retry and any(row is not None and row["status"] == "quarantined" for row in known)
            if size != sizes[item.key] or again or not all(row is not None and self._has(row) for row in known):
                wanted.append((item, self._begun(item, sizes[item.key])))
        return wanted

    def _begun(self, item: Item, size: int) -> frozenset[int]:
        known_size, uids = self.started.get(item.key) or self.finished.get(item.key) or (-2, [])
        if known_size != size:
            return frozenset()
        rows = [self.rows[name] for name in uids if name in self.rows]
        return frozenset(
            round(row["start_s"] * 1000) for row in rows if row["status"] != "quarantined" and self._has(row)
        )

    def _has(self, row: Row) -> bool:
        return row["uid"] in self.packed or row["status"] == "quarantined" or self.clips.has(row)

    def drop_damaged(self) -> int:
        """Forget the clips that a power cut damaged: those noted after the last sync whose bytes differ."""
        unsure = [name for name in self._unsure if name in self.rows and self.rows[name]["status"] != "quarantined"]
        damaged = [name for name in unsure if not self.clips.is_intact(self.rows[name])]
        for name in damaged:
            self.rows.pop(name, None)
        return len(damaged)

    def open(self, settings: Settings) -> None:
        """Begin to note. From here on the folder is not `done`."""
        with disk_faults(self.out):
            (self.out / DONE).unlink(missing_ok=True)
            path = self.out / (self.part.ledger if self.part else LEDGER)
            _cut_torn_line(path)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            if self.part is None:
                self._take_over()
        if self.settings is None or self._file.tell() == 0:
            self.settings = settings.record()
            self._append({"settings": self.settings})

    def _take_over(self) -> None:
        """Put the parts' notes before those that this run will write: the latest counts."""
        for path in parts.ledgers(self.out):
            with open(path, "rb") as file:
                for line in file:
                    if line.endswith(b"\n") and line != parts.COMPLETE:
                        self._write(line)
            os.fsync(self._file.fileno())
            path.unlink()

    def note(self, item: Item, size: int, row: Row) -> None:
        """A clip's files are in place, or a window failed."""
        self.rows[row["uid"]] = row
        _, uids = self.started.setdefault(item.key, (size, []))
        uids.append(row["uid"])
        self._append({"input": item.key, "bytes": size, "row": row})

    def finish_input(self, item: Item, size: int, kept: Iterable[int]) -> None:
        """All windows of an input have their row; `kept` are the starts that an earlier run left."""
        _, noted = self.started.pop(item.key, (size, []))
        starts = set(kept)
        uids = sorted({name for name in noted if name in self.rows} | self._uids_at(item, starts))
        for old in self.finished.get(item.key, (0, []))[1]:
            if old not in uids:
                self.rows.pop(old, None)
        self.finished[item.key] = size, uids
        self._append({"input": item.key, "bytes": size, "uids": uids})

    def _uids_at(self, item: Item, starts: set[int]) -> set[str]:
        return {uid(item.source, start) for start in starts} & self.rows.keys()

    def sync(self) -> None:
        """Make everything that was noted survive a power cut."""
        os.sync()
        self._append({"synced": True})
        os.fsync(self._file.fileno())

    def _append(self, line: dict[str, Any]) -> None:
        self._write((canonical_json(line) + "\n").encode())

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]

    def close_part(self, settings: Settings) -> None:
        """Say in the notes of a part that it is done; a part that never had to note anything leaves none."""
        assert self.part is not None
        path = self.out / self.part.ledger
        if self._file is None and (not path.exists() or parts.is_complete(path)):
            return
        if self._file is None:
            self.open(settings)
        self.sync()
        self._write(parts.COMPLETE)
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self, items: Iterable[Item], settings: Settings) -> None:
        """Turn the notes into the manifest. Labels and splits are the list's of today."""
        for item in items:
            for name in self.finished.get(item.key, (0, []))[1]:
                self.rows[name] |= {"labels": list(item.labels), "split": item.split}
        rows = [self.rows[name] for name in sorted({name for _, uids in self.finished.values() for name in uids})]
        self.clips.sweep({clip_folder(row["uid"]) for row in rows if row["status"] != "quarantined"})
        if self._file is not None:
            self._file.close()
            os.sync()
        compact = [{"settings": settings.record()}] + [
            {"input": key, "bytes": size, "uids": uids}
            for key, (size, uids) in sorted(self.finished.items(), key=_by_bytes)
        ]
        quarantined = [row for row in rows if row["status"] == "quarantined"]
        for name, lines in ((MANIFEST, rows), (QUARANTINE, quarantined), (LEDGER, compact)):
            write_bytes(self.out / name, b"".join(canonical_json(line).encode() + b"\n" for line in lines))
        for path in parts.ledgers(self.out):
            path.unlink()
        counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "flagged", "quarantined")}
        content = digest([[row["uid"], row["sha256"]] for row in rows])
        self.duplicates = duplicates.report(rows)
        write_json(self.out / DUPLICATES, self.duplicates)
        files = (MANIFEST, QUARANTINE, DUPLICATES)
        digests = {name: sha256_file(self.out / name) for name in files} | {"content": content}
        write_json(self.out / DONE, {"settings": settings.record(), "counts": counts, "digests": digests})
        self.rows = {row["uid"]: row for row in rows}


def forget(out: Path) -> None:
    """Delete the notes of earlier extractions in `out`; their clips are `LocalClips.forget`'s."""
    for path in (*(out / name for name in (DONE, LEDGER, MANIFEST, QUARANTINE, DUPLICATES)), *parts.ledgers(out)):
        path.unlink(missing_ok=True)


def _by_bytes(entry: tuple[str, Any]) -> bytes:
    return os.fsencode(entry[0])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON lines; a last line without its end was torn by a kill and counts as absent."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
