"""What is to be extracted: a folder, a list of paths, or a CSV becomes a sorted list of items.

Nothing is opened here: a named pipe with the name of a video would block.
"""

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from kdctool.errors import DataFault, UsageFault
from kdctool.media import stored
from kdctool.media.settings import Item, Segment
from kdctool.places import Place, Remote, is_url
from kdctool.places.scratch import scratch
from kdctool.progress import say

MEDIA_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".aac", ".avi", ".flac", ".flv", ".m2ts", ".m4a", ".m4v", ".mkv", ".mov", ".mp3", ".mp4", ".mpeg"}
    | {".mpg", ".mts", ".oga", ".ogg", ".ogv", ".opus", ".ts", ".wav", ".webm", ".wmv"}
)
PICTURE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp"})
LIST_SUFFIXES = (".txt", ".csv")
SEPARATOR = ";"
"""Between the labels of a `labels` column. A `label` column holds one label, commas and all."""

_COLUMNS = ("path", "start", "end", "start_s", "duration_s", "label", "labels", "split")


@dataclass(frozen=True)
class Inputs:
    """The items, sorted by source and start, and what was left aside."""

    items: tuple[Item, ...]
    num_ignored: int = 0
    """Files without a media suffix, or hidden."""
    num_duplicates: int = 0
    """Lines of a list that name a clip again."""
    root: Remote | None = None
    """The folder in a store that was searched."""


@dataclass(frozen=True)
class _List:
    """A .txt or .csv list."""

    file: Path
    """A copy, where the list lies in a store."""
    place: Place
    """What it is called in messages."""

    def __str__(self) -> str:
        return str(self.place)


def find(videos: Place, images: bool = False) -> Inputs:
    """The inputs of a folder, a .txt, a .csv, or one file. UsageFault when it is not there, DataFault when it is empty.

    Of a folder, the media files; with `images` the pictures instead.
    """
    kind = videos.kind() if isinstance(videos, Remote) else _kind(videos)
    is_wanted = _is_picture if images else _is_media
    if kind == "file" and isinstance(videos, Path) and is_wanted(videos.name):
        return Inputs((Item(os.path.abspath(videos), videos.name),))
    if kind == "folder":
        found = _searched(videos, is_wanted)
        if not found.items:
            raise DataFault(
                f"no {'pictures' if images else 'media files'} in {videos} ({found.num_ignored} other files)",
                _instead(videos, images),
            )
        return found
    if not kind:
        raise UsageFault(f"{videos} does not exist", "give a folder of videos, one video, a .txt list or a .csv")
    if kind != "file" or not videos.name.lower().endswith(LIST_SUFFIXES):
        raise UsageFault(
            f"{videos} is neither a folder nor a .txt or .csv list",
            "give the folder that holds it, or a list that names it",
        )
    if isinstance(videos, Path):
        return _listed(_List(videos, videos))
    with scratch() as folder:
        videos.download(folder / "list")
        return _listed(_List(folder / "list", videos))


def _kind(videos: Path) -> str:
    if videos.is_dir():
        return "folder"
    return ("file" if videos.is_file() else "other") if videos.exists() else ""


def _searched(folder: Place, is_wanted: Callable[[str], bool]) -> Inputs:
    if isinstance(folder, Remote):
        return _objects(folder, is_wanted)
    return _folder(os.path.abspath(folder), is_wanted)


def _instead(folder: Place, images: bool) -> str:
    """What to do where nothing was found."""
    others = len(_searched(folder, _is_media if images else _is_picture).items)
    if others:
        return f"it holds {others} videos or sounds: leave --images out" if images else f"{others} pictures: --images"
    suffixes = PICTURE_SUFFIXES if images else MEDIA_SUFFIXES
    return f"known suffixes: {' '.join(sorted(suffixes))}; a .txt or .csv list may name any file"


def _objects(folder: Remote, is_wanted: Callable[[str], bool]) -> Inputs:
    items, num_ignored = stored.objects(folder, is_wanted)
    return Inputs(tuple(sorted(items, key=_order)), num_ignored, root=folder)


def _listed(given: _List) -> Inputs:
    items = _csv(given) if given.place.name.lower().endswith(".csv") else _text(given)
    if not items:
        raise DataFault(f"{given} names no files", "a .txt holds one path per line; a .csv has a column `path`")
    found = _merged(given, items)
    return replace(found, items=stored.sized(found.items))


def _folder(root: str, is_wanted: Callable[[str], bool]) -> Inputs:
    items: list[Item] = []
    num_ignored = 0
    seen: set[tuple[int, int]] = set()
    closed: list[OSError] = []
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=closed.append):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # Reached again through a link, perhaps to a parent.
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        named_media = [name for name in subfolders if is_wanted(name)]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in named_media)
        for name in files + named_media:
            if is_wanted(name):
                path = os.path.join(folder, name)
                items.append(Item(path, os.path.relpath(path, root)))
            else:
                num_ignored += 1
    if closed and not items:
        raise UsageFault(
            f"cannot read the folder {closed[0].filename}: {closed[0].strerror}",
            "make it readable, or give a list of files",
        )
    for error in closed:  # An input like any other: it gets a row that says why nothing came of it.
        say(f"cannot read the folder {error.filename}: {error.strerror}; it is quarantined, the others are read")
        items.append(Item(error.filename, os.path.relpath(error.filename, root)))
    return Inputs(tuple(sorted(items, key=_order)), num_ignored)


def _is_media(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in MEDIA_SUFFIXES


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def _order(item: Item) -> tuple[bytes, int, int]:
    length = item.segment.length_ms if item.segment else None
    return os.fsencode(item.source), item.start_ms, length or 0


def _text(given: _List) -> list[tuple[int, Item]]:
    lines = os.fsdecode(given.file.read_bytes()).removeprefix("\ufeff").split("\n")
    paths = ((number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1))
    return [(number, _item(given, path)) for number, path in paths if path.strip()]


def _item(given: _List, path: str) -> Item:
    """The input that a list names. A URL of another kind than s3, gs and file is a file with an odd name."""
    folder = given.place.parent
    path = path.removeprefix("file://") if path.startswith("file:///") else path
    if is_url(path):
        return Item(*stored.url_in(folder, path), stored_bytes=stored.GONE)
    if isinstance(folder, Remote):
        if not os.path.isabs(path):
            return Item(*stored.place_in(folder, path), stored_bytes=stored.GONE)
        return Item(os.path.normpath(path), os.path.normpath(path))
    return Item(*_place(folder, path))


def _place(folder: Path, path: str) -> tuple[str, str]:
    """Absolute path and source name of a path in a list; inside the list's folder the name is relative to it."""
    above = os.path.abspath(folder)
    absolute = os.path.normpath(os.path.join(above, path))
    inside = absolute.startswith(above.rstrip("/") + "/")
    return absolute, os.path.relpath(absolute, above) if inside or not os.path.isabs(path) else absolute


def _csv(file: _List) -> list[tuple[int, Item]]:
    with open(file.file, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        reader = csv.DictReader(handle, strict=True)
        try:
            columns = reader.fieldnames or []
            if "path" not in columns:
                raise UsageFault(
                    f"{file} has no column `path` (its columns: {', '.join(columns) or 'none'})",
                    f"the first line names the columns; known are {', '.join(_COLUMNS)}",
                )
            return [
                (reader.line_num, _row(file, reader.line_num, row)) for row in reader if (row["path"] or "").strip()
            ]
        except csv.Error as error:
            raise UsageFault(
                f"{file}:{reader.line_num}: {error}", "quote fields that hold commas or line breaks"
            ) from error


def _row(file: _List, number: int, row: dict[str, str | None]) -> Item:
    start = _milliseconds(file, number, "start", row.get("start") or row.get("start_s"))
    end = _milliseconds(file, number, "end", row.get("end"))
    length = _milliseconds(file, number, "duration_s", row.get("duration_s"))
    if end is not None:
        length = end - (start or 0)
    if length is not None and length <= 0:
        raise UsageFault(
            f"{file}:{number}: the segment ends before it starts", "times are seconds after the first frame"
        )
    segment = None if start is None and length is None else Segment(start or 0, length)
    labels = [label.strip() for label in (row.get("labels") or "").split(SEPARATOR)] + [
        (row.get("label") or "").strip()
    ]
    return replace(
        _item(file, row["path"] or ""),
        segment=segment,
        labels=tuple(dict.fromkeys(filter(None, labels))),
        split=(row.get("split") or "").strip(),
    )


def _milliseconds(file: _List, number: int, column: str, text: str | None) -> int | None:
    if text is None or not text.strip():
        return None
    try:
        value = Decimal(text.strip())
        if value.is_finite() and 0 <= value < 10**9:
            return round(value * 1000)
    except InvalidOperation:
        pass
    raise UsageFault(f"{file}:{number}: {column} = '{text}' is not a time", "write seconds, for example 12.5")


def _merged(file: _List, numbered: list[tuple[int, Item]]) -> Inputs:
    """Sort; lines that name one clip again give it their labels too. Two lengths of one start are an error."""
    by_clip: dict[tuple[str, int], tuple[int, Item]] = {}
    for number, item in numbered:
        first_number, first = by_clip.setdefault((item.source, item.start_ms), (number, item))
        if first is item:
            continue
        if first.segment != item.segment or first.split != item.split:
            raise UsageFault(
                f"{file}:{first_number} and :{number} name the same video and start with different ends or splits",
                "keep one of them",
            )
        labels = tuple(dict.fromkeys(first.labels + item.labels))
        by_clip[item.source, item.start_ms] = first_number, replace(first, labels=labels)
    items = tuple(sorted((item for _, item in by_clip.values()), key=_order))
    ends = _furthest(items)
    items = tuple(replace(item, furthest_ms=ends.get(item.path)) for item in items)
    return Inputs(items, num_duplicates=len(numbered) - len(items))


def _furthest(items: tuple[Item, ...]) -> dict[str, int]:
    """For each file of which several segments are wanted: where the last one ends, in milliseconds."""
    ends: dict[str, list[int]] = {}
    for item in items:
        length = item.segment.length_ms if item.segment else None
        ends.setdefault(item.path, []).append(item.start_ms + (length or 0))
    return {path: max(found) for path, found in ends.items() if len(found) > 1}
