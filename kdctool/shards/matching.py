"""Joins the rows of label files with clips: by uid, by path, by file name, or by video id and start.

Names of cut clips that are understood, for the video `ID` from second 30 on: `ID_000030`, `ID_30`, `ID_30.000`,
`ID_30000` (milliseconds), each of them also with `_END` behind it, `ID` alone, and `YID` as copies of AudioSet have it.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from kdctool.errors import DataFault
from kdctool.shards.formats import Box, LabelRow

_NUMBER = r"\d{1,9}(?:\.\d{1,6})?"
_ONE_TIME = re.compile(rf"(.+)_({_NUMBER})", re.DOTALL)
_TWO_TIMES = re.compile(rf"(.+)_({_NUMBER})_{_NUMBER}", re.DOTALL)
_YOUTUBE_START = re.compile(rf"Y?([\w-]{{11}})_({_NUMBER})(?:_{_NUMBER})?", re.ASCII)
_Y_YOUTUBE = re.compile(rf"Y[\w-]{{11}}(?:_{_NUMBER}){{0,2}}", re.ASCII)
_MEDIA_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
_TOLERANCE_S = 0.5
"""How far a clip may reach over the end of its segment: containers are rarely cut to the millisecond."""


class Named(Protocol):
    """A clip as far as finding it needs."""

    uid: str
    source: str
    start_s: float
    end_s: float


class Labelled(Named, Protocol):
    """A clip as far as labels need it."""

    source_id: str
    labels: tuple[str, ...]
    split: str
    boxes: tuple[Box, ...]


C = TypeVar("C", bound=Named)
L = TypeVar("L", bound=Labelled)


class Matcher(Generic[C]):
    """Finds the clips that a row names, among `clips`; `rows` are all rows that will be asked for."""

    def __init__(self, clips: Iterable[C], rows: Sequence[LabelRow]) -> None:
        self._uids: dict[str, list[C]] = {}
        self._sources: dict[str, list[C]] = defaultdict(list)
        for clip in clips:
            self._uids.setdefault(clip.uid, []).append(clip)
            self._sources[clip.source].append(clip)
        self._stems: dict[str, list[str]] = defaultdict(list)
        self._videos: dict[str, list[tuple[str, str]]] = defaultdict(list)
        """Video id -> (source, start as its name writes it, or nothing)."""
        for source in self._sources:
            self._stems[stem_of(source)].append(source)
            for video, start in _readings(stem_of(source)):
                self._videos[video].append((source, start))
        paths = {row.clip for row in rows if row.by == "path"}
        self._prefix = _prefix(paths, self._sources) if paths else ""
        self._starts: dict[str, set[int]] = defaultdict(set)
        for row in rows:
            for video, seconds in dict(reversed([*_asked(row)])).items():  # the first reading of a name counts
                self._starts[video].add(_ms(seconds))

    def find(self, row: LabelRow) -> list[C]:
        """The clips of one row; none when there is no such clip."""
        if row.by == "uid":
            return self._uids.get(row.clip, [])
        if row.by == "path":
            return self._sources.get(row.clip) or self._sources.get(_without(row.clip, self._prefix)) or []
        if row.by == "name":
            named = self._uids.get(row.clip) or self._sources.get(os.path.normpath(row.clip))
            if named:
                return named
            same = [clip for source in self._stems.get(stem_of(row.clip), ()) for clip in self._sources[source]]
            if same:
                return same
        elif row.start_s is None:
            return [clip for source in self._files(row.clip) for clip in self._sources[source]]
        for video, start in _asked(row):
            found = self._segment(video, start, row.end_s)
            if found:
                return found
        return []

    def _files(self, video: str) -> Iterator[str]:
        return (source for source, _ in self._videos.get(video, ()))

    def _segment(self, video: str, start: float, end: float | None) -> list[C]:
        """Clips of the files that are this segment, and clips that were cut at its place from the whole video."""
        found: list[C] = []
        for source, written in self._videos.get(video, ()):
            clips = self._sources[source]
            if written:
                found += clips if _is_start(written, start) else []
                continue
            inside = [clip for clip in clips if _lies_inside(clip, start, end)]
            if not inside and self._starts[video] == {_ms(start)} and max(clip.start_s for clip in clips) < start:
                inside = clips  # the only segment of this video: the file ID.mp4 is that segment
            found += inside
        return found


def match_labels(clips: Iterable[L], rows: Sequence[LabelRow]) -> list[LabelRow]:
    """Give every clip the labels, the split and the boxes of its rows; returns the rows that name no clip.

    Several rows of one clip add up. A row names all clips that were cut from its file. What a label file does not
    say (no row, or an empty cell) stays as the manifest has it.
    """
    clips = list(clips)
    matcher = Matcher(clips, rows)
    unmatched: list[LabelRow] = []
    labels: dict[str, list[str]] = defaultdict(list)
    boxes: dict[str, list[Box]] = defaultdict(list)
    splits: dict[str, LabelRow] = {}
    for row in rows:
        found = matcher.find(row)
        if not found:
            unmatched.append(row)
        for clip in found:
            labels[clip.uid] += row.labels
            boxes[clip.uid] += row.boxes
            clip.source_id = video_of(row) or clip.source_id
            if row.split:
                before = splits.setdefault(clip.uid, row)
                if before.split != row.split:
                    other = f"line {before.line}" if before.origin == row.origin else before.where
                    raise DataFault(
                        f"{row.where} puts {row.clip!a} into '{row.split}', {other} into '{before.split}'",
                        "a clip is in one split; delete one of the lines (kdctool data audit lists all)",
                    )
    for clip in clips:
        clip.labels = tuple(dict.fromkeys(labels.get(clip.uid, ()))) or clip.labels
        clip.boxes = tuple(dict.fromkeys(boxes.get(clip.uid, ()))) or clip.boxes
        clip.split = splits[clip.uid].split if clip.uid in splits else clip.split
    return unmatched


def video_of(row: LabelRow) -> str:
    """The source video of a row, where the row or its file name says it; else nothing."""
    return row.clip if row.by == "video" else video_in_name(row.clip) if row.by != "uid" else ""


def clip_of(row: LabelRow) -> str:
    """One text for one clip, whichever published list names it: `ID_30` for the clip of `ID` from second 30 on."""
    if row.by == "video":
        return row.clip if row.start_s is None else f"{row.clip}_{row.start_s:g}"
    if row.by != "name":
        return row.clip
    match = _YOUTUBE_START.fullmatch(stem_of(row.clip))
    return f"{match[1]}_{float(match[2]):g}" if match else stem_of(row.clip)


def video_in_name(source: str) -> str:
    """The YouTube id in the name of a cut clip (`---g-f_I2yQ_000001.mp4`), else nothing."""
    match = _YOUTUBE_START.fullmatch(stem_of(source))
    return match[1] if match else ""


def stem_of(source: str) -> str:
    """File name without folders and media suffix; `_40.000` is none."""
    return _MEDIA_SUFFIX.sub("", source.rpartition("/")[2])


def _readings(stem: str) -> Iterator[tuple[str, str]]:
    """What a stem may mean: (video id, start as written, or nothing)."""
    for text in (stem, stem[1:]) if _Y_YOUTUBE.fullmatch(stem) else (stem,):
        yield text, ""
        for pattern in (_ONE_TIME, _TWO_TIMES):
            if match := pattern.fullmatch(text):
                yield match[1], match[2]


def _asked(row: LabelRow) -> Iterator[tuple[str, float]]:
    """The segments that a row may ask for: (video id, start in seconds)."""
    if row.by == "video" and row.start_s is not None:
        yield row.clip, row.start_s
    elif row.by == "name":
        for video, start in _readings(stem_of(row.clip)):
            if start:
                yield video, float(start)
                if start.isdigit():
                    yield video, int(start) / 1000


def _is_start(written: str, start: float) -> bool:
    return _ms(float(written)) == _ms(start) or (written.isdigit() and int(written) == _ms(start))


def _lies_inside(clip: Named, start: float, end: float | None) -> bool:
    if end is None:
        return _ms(clip.start_s) == _ms(start)
    return _ms(clip.start_s) >= _ms(start) and clip.end_s <= end + _TOLERANCE_S


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


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
