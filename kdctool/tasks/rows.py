"""Which clips the rows of a file are about: named by path, by file name or by uid, as label files name them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdctool.errors import DataFault
from kdctool.shards.formats import LabelRow
from kdctool.shards.matching import Matcher


class Row(Protocol):
    """A row as far as finding its clips needs."""

    @property
    def clip(self) -> str:
        """Path, file name or uid."""
        ...

    @property
    def where(self) -> str:
        """File and line, for messages."""
        ...


def match(path: Path, rows: Sequence[Row], uids: Sequence[str], abouts: Sequence[dict[str, Any]]) -> list[list[int]]:
    """For each row the places of its clips, none where it is about another split.

    A clip that is named with its folder is found by that path alone. DataFault where a name may be several files, and
    where no row is about any clip.
    """
    clips = [_Clip.of(i, uid, about) for i, (uid, about) in enumerate(zip(uids, abouts, strict=True))]
    paths = [LabelRow(row.clip, "path", (), "", 0) for row in rows]
    names = [LabelRow(row.clip, "name", (), "", 0) for row in rows]
    matcher = Matcher(clips, [*paths, *names])
    found = []
    for row, by_path, by_name in zip(rows, paths, names, strict=True):
        hits = matcher.find(by_path) or ([] if "/" in row.clip else matcher.find(by_name))
        if len({clip.source for clip in hits}) > 1:
            raise DataFault(
                f"{row.where}: {row.clip!a} may be {hits[0].uid} or {hits[-1].uid}",
                "write the path of the file, as the clips' `source` has it",
            )
        found.append([clip.index for clip in hits])
    if not any(found):
        first = clips[0].source if clips else "missing"
        raise DataFault(
            f"none of the {len(rows)} annotations of {path} is about a clip of this split: the first is "
            f"about {rows[0].clip!a}, the first clip is {first!a}",
            "choose another --split, or shards of the annotated videos",
        )
    return found


@dataclass
class _Clip:
    """A clip as far as finding it needs."""

    index: int
    uid: str
    source: str
    start_s: float
    end_s: float

    @classmethod
    def of(cls, index: int, uid: str, about: dict[str, Any]) -> "_Clip":
        start = float(about.get("start_s") or 0.0)
        source = str(about.get("source") or uid)
        return cls(index, uid, source, start, start + float(about.get("duration_s") or 0.0))
