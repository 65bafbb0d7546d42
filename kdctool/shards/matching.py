"""Joins the rows of a label file with the clips of a manifest: by uid, or by the path of the source video."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from kdctool.errors import DataFault
from kdctool.shards.labels import LabelRow


class Labelled(Protocol):
    """A clip as far as labels need it."""

    uid: str
    source: str
    labels: tuple[str, ...]
    split: str


def match_labels(clips: Iterable[Labelled], rows: list[LabelRow], origin: Path | None = None) -> list[LabelRow]:
    """Give every clip the labels and the split of its rows; returns the rows that name no clip.

    Several rows of one clip add up. A row names all clips that were cut from its video. What a label file does not
    say (no row, or an empty cell) stays as the manifest has it.
    """
    clips = list(clips)
    by_name: dict[str, list[Labelled]] = defaultdict(list)
    for clip in clips:
        by_name[clip.uid if rows and rows[0].by_uid else clip.source].append(clip)
    prefix = "" if not rows or rows[0].by_uid else _prefix({row.clip for row in rows}, by_name)
    unmatched: list[LabelRow] = []
    labels: dict[str, list[str]] = defaultdict(list)
    splits: dict[str, LabelRow] = {}
    for row in rows:
        found = by_name.get(row.clip) or by_name.get(_without(row.clip, prefix))
        if not found:
            unmatched.append(row)
            continue
        for clip in found:
            labels[clip.uid] += row.labels
            if row.split:
                before = splits.setdefault(clip.uid, row)
                if before.split != row.split:
                    other = f"line {before.line} into '{before.split}'"
                    raise DataFault(
                        f"{origin}:{row.line} puts {row.clip!a} into '{row.split}', {other}",
                        "a clip is in one split; delete one of the lines",
                    )
    for clip in clips:
        clip.labels = tuple(dict.fromkeys(labels.get(clip.uid, ()))) or clip.labels
        clip.split = splits[clip.uid].split if clip.uid in splits else clip.split
    return unmatched


def _prefix(names: set[str], sources: Mapping[str, object]) -> str:
    """The folder that stands before the manifest's names in a label file: absolute paths, or `videos/` in front.

    One folder for the whole file, the one that most rows agree on; none when a name matches as it is, or on a tie.
    """
    if any(name in sources or os.path.normpath(name) in sources for name in names):
        return ""
    found: Counter[str] = Counter()
    for name in names:
        parts = os.path.normpath(name).split("/")
        for first in range(1, len(parts)):
            if "/".join(parts[first:]) in sources:
                found["/".join(parts[:first]) + "/"] += 1
    best = found.most_common(2)
    return best[0][0] if len(best) == 1 or (best and best[0][1] > best[1][1]) else ""


def _without(name: str, prefix: str) -> str:
    name = os.path.normpath(name)
    return name[len(prefix) :] if prefix and name.startswith(prefix) else name if not prefix else ""
