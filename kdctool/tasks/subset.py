"""Which clips a task scores where that is not all of them: k per class, or those of a list."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdctool.errors import DataFault, UsageFault
from kdctool.files import digest
from kdctool.seeds import fold
from kdctool.tasks import Choice

NOT_IN_SHARDS = "not_in_shards"


def per_class(uids: Sequence[str], abouts: Sequence[dict[str, Any]], k: int, seed: int) -> Choice:
    """`k` clips of every label, drawn by a hash of seed, label and uid: neither order nor other classes matter.

    A clip of several labels may be drawn for each of them and counts once.
    """
    drawn: dict[str, list[tuple[int, int]]] = {}
    for place, (uid, about) in enumerate(zip(uids, abouts, strict=True)):
        for label in about.get("labels", []):
            drawn.setdefault(label, []).append((fold(seed, "per_class", label, uid), place))
    if not drawn:
        raise DataFault("no clip of the split has a label, so none can be chosen by class", "leave per_class out")
    keep = np.zeros(len(uids), dtype=bool)
    for found in drawn.values():
        keep[[place for _, place in sorted(found)[:k]]] = True
    short = sorted(label for label, found in drawn.items() if len(found) < k)
    notes = [f"{keep.sum()} of {len(uids)} clips: {k} per class of {len(drawn)} classes"]
    if short:
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        notes.append(f"{len(short)} classes have fewer than {k} clips: {', '.join(short[:5])}{more}")
    return Choice(keep, notes=tuple(notes))


@dataclass(frozen=True)
class IdList:
    """A file with a clip's uid or a source video's id per line; empty lines and lines after `#` are comments."""

    path: Path
    ids: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "IdList":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageFault(
                f"the list {path} cannot be read: {error}", "name a text file with one uid or source id per line"
            ) from error
        ids = {line.strip() for line in lines} - {""}
        ids = {line for line in ids if not line.startswith("#")}
        if not ids:
            raise UsageFault(f"the list {path} has no ids", "write one uid or source id per line")
        return cls(path, tuple(sorted(ids)))

    @property
    def tag(self) -> str:
        """Eight hex digits of the ids, whatever their order."""
        return digest(list(self.ids))[:8]

    def choose(self, uids: Sequence[str], sources: Sequence[str]) -> Choice:
        """The clips whose uid or source is listed; ids that are neither are missing."""
        wanted = set(self.ids)
        keep = np.array([uid in wanted or source in wanted for uid, source in zip(uids, sources, strict=True)], bool)
        unknown = wanted - set(uids) - set(sources)
        if not keep.any():
            raise DataFault(
                f"none of the {len(wanted)} ids of {self.path} is in the split, first '{self.ids[0]}'",
                "ids are uids or source ids as in the shards' manifest; or choose another --split",
            )
        return Choice(keep, {NOT_IN_SHARDS: len(unknown)} if unknown else {})
