"""Which clips there are, usable or not, in an extraction folder or in shards."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault, quoted
from kdctool.progress import bar
from kdctool.shards import foreign, index
from kdctool.shards.extraction import DONE, MANIFEST, USABLE, open_extraction
from kdctool.shards.matching import video_in_name
from kdctool.shards.read import ShardReader


@dataclass(slots=True)
class StoredClip:
    """A clip, or an input that gave none."""

    uid: str
    source: str
    source_id: str
    start_s: float
    end_s: float
    labels: tuple[str, ...]
    split: str
    reason: str = ""
    """Why it cannot be used; empty for clips."""
    content: str = ""
    """Equal for clips whose audio and frames are equal, byte for byte."""


def stock(folder: Path) -> list[StoredClip]:
    """Every clip of an extraction folder, failed inputs too, or of a folder of shards."""
    return list(_extracted(folder) if is_extraction(folder) else _sharded(folder))


def is_extraction(folder: Path) -> bool:
    """Whether a folder holds extracted clips rather than shards; DataFault when it holds neither."""
    if (folder / MANIFEST).is_file() or (folder / DONE).is_file():
        return True
    if (folder / index.INDEX).is_file() or (folder / index.BUILDING).is_dir() or foreign.tars(folder):
        return False
    raise DataFault(
        f"{folder} holds neither extracted clips nor shards",
        f"kdctool extract VIDEOS {quoted(folder)}, or name another folder",
    )


def _extracted(folder: Path) -> Iterator[StoredClip]:
    for _, _, row in open_extraction(folder).rows():
        usable = row["status"] in USABLE
        reason = "" if usable else str(row.get("reason") or row["status"])
        yield _clip(row["uid"], row, str(row.get("split") or ""), reason, str(row.get("sha256") or ""))


def _sharded(folder: Path) -> Iterator[StoredClip]:
    opened = index.load(folder)
    with bar("reading shards", sum(opened.splits.values())) as progress:
        for name in opened.splits:
            split = opened.split(name)
            reader = ShardReader(split)
            for i in range(len(split)):
                members = split.members(i)
                about = _about(reader, i) if "json" in members else {}
                named = [suffix for suffix in members if suffix != "json"]
                sums = sorted((suffix, (length, crc)) for suffix, _, length, crc in split.places(i, named))
                content = sha256(repr([place for _, place in sums]).encode()).hexdigest()
                yield _clip(split.key(i), {"source": split.key(i)} | about, name, "", content)
                progress.advance()
            reader.close()


def _about(reader: ShardReader, i: int) -> dict[str, Any]:
    try:
        about = json.loads(reader.read(i, ["json"])["json"])
    except ValueError as error:
        raise DataFault(f"{reader.split.path(i)}: the json of {reader.split.key(i)} is damaged: {error}") from error
    return about if isinstance(about, dict) else {}


def _clip(uid: str, row: dict[str, Any], split: str, reason: str, content: str) -> StoredClip:
    start, length = float(row.get("start_s") or 0), float(row.get("duration_s") or 0)
    source = str(row["source"])
    source_id = video_in_name(source) or str(row.get("source_id") or source)
    labels = row.get("labels")
    return StoredClip(
        uid,
        source,
        source_id,
        start,
        start + length,
        tuple(str(label) for label in labels) if isinstance(labels, list) else (),
        split,
        reason,
        content,
    )
