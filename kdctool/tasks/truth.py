"""Where in the picture a sound comes from, as data sets publish it, and which clip of a split each annotation is about.

VGG-SS' `vggss.json`; Flickr-SoundNet's folder of XML files (one per picture, a box per annotator) or a CSV with a row
per box; AV-Digits' `truth.jsonl`. All boxes end up as shares of the whole source picture.
"""

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault, UsageFault
from kdctool.shards.formats import Box, LabelFile, formats
from kdctool.tasks.rows import match

FORMATS = ("vggss", "flickr", "avdigits")
FLICKR_SIDE = 256.0
"""Flickr-SoundNet's boxes are pixels of the picture squeezed to 256 x 256."""
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1"))
_KNOWN = "VGG-SS' JSON, a folder of Flickr-SoundNet's XML files or a CSV with file,x1,y1,x2,y2, AV-Digits' JSONL"
Boxes = tuple[Box, ...]


@dataclass(frozen=True)
class Annotation:
    """What is known of one clip. Boxes are shares of the whole source picture."""

    clip: str
    """Path or name of the clip."""
    where: str
    """File and line, for messages."""
    boxes: Boxes = ()
    """Of the whole clip: one per annotator or object."""
    per_frame: tuple[Boxes, ...] = ()
    """Of each frame of the source video, where boxes move."""
    silent: tuple[Boxes, ...] = ()
    """Of each frame: a rival that could sound and does not."""
    fps: float = 0.0
    split: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    """What else the row says."""

    def at(self, seconds: float) -> tuple[Boxes, Boxes]:
        """Boxes of the sounding thing and of its silent rival at a time of the source video."""
        if not self.per_frame:
            return self.boxes, ()
        place = max(0, int(seconds * self.fps + 0.5))
        return _last(self.per_frame, place), _last(self.silent, place)


@dataclass(frozen=True)
class Truth:
    """All annotations of a file or a folder."""

    path: Path
    format: str
    rows: tuple[Annotation, ...]
    sha256: str

    def find(self, uids: Sequence[str], abouts: Sequence[dict[str, Any]]) -> tuple[dict[int, Annotation], int]:
        """Index of a clip -> its annotation, and how many annotations are about no clip.

        A clip that is named with its folder is found by that path alone. Boxes of several rows of one clip add up.
        Where rows name splits, those of other splits are not counted.
        """
        found: dict[int, Annotation] = {}
        unmatched = []
        for row, places in zip(self.rows, match(self.path, self.rows, uids, abouts), strict=True):
            for place in places:
                found[place] = _added(found[place], row) if place in found else row
            if not places:
                unmatched.append(row)
        splits = {row.split for row in found.values()}
        return found, sum(row.split in splits for row in unmatched)


def load(path: Path, given: str = "auto") -> Truth:
    """Read annotations; UsageFault where there is nothing at `path`, DataFault for what cannot be understood."""
    if not path.exists():
        raise UsageFault(f"there is no {path}", f"truth = FILE is {_KNOWN}")
    if path.is_dir():
        files = sorted(path.glob("*.xml"))
        if not files or given not in ("auto", "flickr"):
            raise DataFault(f"{path} is a folder without XML files of Flickr-SoundNet", f"truth = FILE is {_KNOWN}")
        contents = [(file, file.read_bytes()) for file in files]
        rows = tuple(_xml(file, data) for file, data in contents)
        return Truth(path, "flickr", rows, _digest(data for _, data in contents))
    data = path.read_bytes()
    try:
        file = LabelFile(path, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataFault(f"{path} is no text in UTF-8: {error.reason}", f"truth = FILE is {_KNOWN}") from error
    name = _recognised(file) if given == "auto" else given
    read: dict[str, Callable[[LabelFile], Iterator[Annotation]]] = {
        "vggss": _vggss,
        "flickr": _flickr,
        "avdigits": _avdigits,
    }
    if name not in read:
        raise DataFault(f"{path} is in no known format of annotations", f"truth = FILE is {_KNOWN}")
    rows = tuple(read[name](file))
    if not rows:
        raise DataFault(f"{path} holds no annotation", f"truth = FILE is {_KNOWN}")
    return Truth(path, name, rows, _digest([data]))


def _recognised(file: LabelFile) -> str:
    start = file.text.lstrip()
    if formats.get("vggss").cls().recognises(start):
        return "vggss"
    if start.startswith("{") and '"sounding"' in start.partition("\n")[0]:
        return "avdigits"
    return "flickr" if _columns(start.partition("\n")[0]) else ""


def _vggss(file: LabelFile) -> Iterator[Annotation]:
    for row in formats.get("vggss").cls().rows(file):
        yield Annotation(row.clip, file.where(row.line), row.boxes)


def _avdigits(file: LabelFile) -> Iterator[Annotation]:
    for number, line in enumerate(file.text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, size = str(row["file"]), (float(row["width"]), float(row["height"]))
            sounding = _moving(row["sounding"]["boxes"], size, file.where(number))
            silent = _moving((row.get("silent") or {}).get("boxes", ()), size, file.where(number))
            fps, split = float(row["fps"]), str(row.get("split", ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise file.fault(number, f"no row of AV-Digits: {type(error).__name__} {error}") from error
        rest = {key: row[key] for key in ("onset_s", "duration_s") if key in row}
        yield Annotation(name, file.where(number), per_frame=sounding, silent=silent, fps=fps, split=split, about=rest)


def _flickr(file: LabelFile) -> Iterator[Annotation]:
    header, *lines = csv.reader(io.StringIO(file.text.lstrip(), newline=""), skipinitialspace=True)
    names = [cell.strip().lower() for cell in header]
    corners = _columns(",".join(names))
    if not corners:
        raise file.fault(1, f"the columns are {', '.join(names)}", "name them file,x1,y1,x2,y2 (and width,height)")
    places = [names.index(corner) for corner in corners]
    by_name: dict[str, list[tuple[int, tuple[float, ...]]]] = {}
    for number, cells in enumerate(lines, 2):
        if not any(cell.strip() for cell in cells):
            continue
        try:
            size = [float(cells[names.index(side)]) for side in ("width", "height") if "width" in names]
            box = tuple(float(cells[place]) for place in places)
            by_name.setdefault(cells[names.index("file")].strip(), []).append((number, (*box, *size)))
        except (ValueError, IndexError) as error:
            raise file.fault(number, f"no box: {error}") from error
    boxes = [box[:4] for held in by_name.values() for _, box in held]
    side = 1.0 if max((value for box in boxes for value in box), default=0.0) <= 1.0 else FLICKR_SIDE
    for name, held in by_name.items():
        scaled = tuple(_box(box[:4], box[4:] or (side, side), file.where(number)) for number, box in held)
        yield Annotation(name, file.where(held[0][0]), scaled)


def _xml(path: Path, data: bytes) -> Annotation:
    """Every `bbox` of a file: named corners, or the last four numbers in it, in pixels of 256 x 256."""
    if b"<!" in data.replace(b"<!--", b""):
        raise DataFault(f"{path} declares a document type or entities", "annotations need neither; delete them")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DataFault(f"{path} is no XML: {error}", "delete it, or fetch it again") from error
    found = []
    for element in root.iter("bbox"):
        named = {child.tag.lower(): (child.text or "").strip() for child in element}
        corners = next((names for names in _CORNERS if set(names) <= set(named)), None)
        texts = [named[name] for name in corners] if corners else [(child.text or "") for child in element][-4:]
        if len(texts) != 4 or not all(re.fullmatch(r"\s*-?\d+(\.\d*)?\s*", text) for text in texts):
            raise DataFault(f"{path}: a bbox without four numbers", "correct it, or delete the file")
        found.append(_box(tuple(map(float, texts)), (FLICKR_SIDE, FLICKR_SIDE), str(path)))
    return Annotation(path.stem, str(path), tuple(found))


def _columns(header: str) -> tuple[str, ...]:
    names = {cell.strip().lower() for cell in header.split(",")}
    return next((corners for corners in _CORNERS if {"file", *corners} <= names), ())


def _moving(frames: Any, size: tuple[float, float], where: str) -> tuple[Boxes, ...]:
    """Per-frame boxes [x0, y0, x1, y1] or null in pixels, as shares."""
    return tuple((_box(tuple(map(float, frame)), size, where),) if frame else () for frame in frames)


def _box(corners: tuple[float, ...], size: Sequence[float], where: str) -> Box:
    if len(corners) != 4 or not all(map(math.isfinite, corners)) or min(size) <= 0:
        raise DataFault(f"{where}: {corners} of a picture of {size} is no box", "correct it, or delete it")
    x0, y0, x1, y1 = corners
    return x0 / size[0], y0 / size[1], x1 / size[0], y1 / size[1]


def _added(one: Annotation, other: Annotation) -> Annotation:
    if one.per_frame or other.per_frame:
        raise DataFault(f"{one.where} and {other.where} are about the same clip", "delete one of them")
    return Annotation(one.clip, one.where, one.boxes + other.boxes, split=one.split)


def _last(frames: tuple[Boxes, ...], place: int) -> Boxes:
    return frames[min(place, len(frames) - 1)] if frames else ()


def _digest(contents: Any) -> str:
    whole = sha256()
    for data in contents:
        whole.update(data)
    return whole.hexdigest()
