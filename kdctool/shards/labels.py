"""Label files: which clip is what, and in which split. The formats are in `kdctool.shards.formats`."""

import csv
import difflib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from kdctool.errors import DataFault, UsageFault
from kdctool.shards.formats import LabelFile, LabelFormat, LabelRow, check_split, formats

FOLDERS = "folders"
"""`--labels folders`: the label of a clip is the name of the folder its video lies in."""
_HEAD = 1 << 16


@dataclass(frozen=True)
class LabelSource:
    """A label file as it is asked for: its path, and the split of all its rows where the file does not say one."""

    path: Path
    split: str = ""


@dataclass(frozen=True)
class LabelOptions:
    """What a person says about labels."""

    files: tuple[str, ...] = ()
    """FILE or SPLIT=FILE each, or only the word `folders`."""
    format: str = ""
    """Name of a label format; found by content when empty."""
    class_names: Path | None = None
    label_list: Path | None = None

    def read(self, videos: Iterable[str]) -> "Labelling":
        """All rows, checked against the classes where a list gives them; `videos` are for `folders`."""
        if self.format and self.format not in formats.names():
            raise UsageFault(f"no label format is called '{self.format}'", f"there are: {', '.join(formats.names())}")
        if FOLDERS in self.files and len(self.files) > 1:
            raise UsageFault("--labels folders stands alone", "leave the other --labels out")
        classes = read_class_names(self.class_names) if self.class_names else None
        known = read_label_list(self.label_list) if self.label_list else classes.names if classes else ()
        if FOLDERS in self.files:
            rows = folder_rows(videos)
        else:
            sources = label_sources(self.files)
            rows = []
            for source in sources:
                rows += read_labels(source.path, known, format=self.format, class_names=classes, split=source.split)
        if known:
            named = ((label, row.where) for row in rows for label in row.labels)
            check_known(named, known, str(self.label_list or self.class_names))
        return Labelling(rows, known, str(self.label_list or self.class_names or ""))

    @property
    def digests(self) -> dict[str, str]:
        """What of it decides about the rows, as digests and words."""
        sources = [FOLDERS] if FOLDERS in self.files else label_sources(self.files)
        texts = [s if isinstance(s, str) else f"{s.split}={_sha(s.path)}".removeprefix("=") for s in sources]
        return {
            "labels": "+".join(texts),
            "labels_format": self.format,
            "class_names": _sha(self.class_names),
            "label_list": _sha(self.label_list),
        }


@dataclass(frozen=True)
class Labelling:
    """The rows of all label files, and the classes in their order where a list gives them."""

    rows: list[LabelRow]
    known: tuple[str, ...]
    list_name: str


@dataclass(frozen=True)
class ClassNames:
    """A `class_labels_indices.csv`: the classes in their order, and the name of each id (mid)."""

    path: Path
    names: tuple[str, ...]
    by_id: dict[str, str]


def label_sources(given: Sequence[str | Path]) -> list[LabelSource]:
    """Parse `FILE` and `SPLIT=FILE`; a file that exists under the whole name is that file."""
    sources = []
    for text in map(str, given):
        split, equals, path = text.partition("=")
        if equals and path and not Path(text).exists():
            sources.append(LabelSource(Path(path), check_split(split, f"--labels {text}")))
        else:
            sources.append(LabelSource(Path(text)))
    return sources


def read_label_list(path: Path) -> tuple[str, ...]:
    """The label list: a name per line, in the order that becomes the classes' order."""
    names = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not names:
        raise DataFault(f"the label list {path} is empty", "write one label per line")
    _once(path, names)
    return tuple(names)


def read_class_names(path: Path) -> ClassNames:
    """Parse `index,mid,display_name` (AudioSet, CAV-MAE): the classes stand in the order of their index."""
    rows = list(csv.reader(io.StringIO(_text(path), newline=""), skipinitialspace=True))
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not {"index", "mid", "display_name"} <= set(header):
        raise DataFault(
            f"{path} needs a first line with index, mid and display_name; it is: {','.join(header)[:80]!a}",
            "AudioSet publishes class_labels_indices.csv; --label-list takes a plain list of names",
        )
    places = [header.index(name) for name in ("index", "mid", "display_name")]
    found: list[tuple[int, str, str]] = []
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(places) or not row[places[0]].strip().isdigit():
            raise DataFault(f"{path}:{line}: not index,mid,display_name", "quote names with commas")
        index, mid, name = (row[place].strip() for place in places)
        found.append((int(index), mid, name))
    found.sort()
    _once(path, [name for _, _, name in found])
    _once(path, [mid for _, mid, _ in found])
    return ClassNames(path, tuple(name for _, _, name in found), {mid: name for _, mid, name in found})


def read_labels(
    path: Path,
    known: Iterable[str] | None = None,
    *,
    format: str = "",
    class_names: ClassNames | None = None,
    split: str = "",
) -> list[LabelRow]:
    """All rows of a label file, its format found by its content unless `format` names it.

    With `known`, a cell that is a name of the list as a whole is one label. `class_names` turns ids into names.
    """
    text = _text(path)
    name = format or detect(path, text)
    reader: LabelFormat = formats.get(name).cls()
    origin = str(path)
    names = class_names.by_id if class_names else {}
    rows = []
    for row in reader.rows(LabelFile(path, text, frozenset(known or ()))):
        labels = tuple(names.get(label, label) for label in row.labels) if names else row.labels
        rows.append(replace(row, labels=labels, split=row.split or split, origin=origin))
    if not rows:
        raise DataFault(f"{path} ({name}) names no clips", "is it complete?")
    return rows


def detect(path: Path, text: str | None = None) -> str:
    """The format of a label file by its content; DataFault when none or several claim it."""
    head = (_text(path) if text is None else text)[:_HEAD]
    names = [name for name in formats.names() if formats.get(name).cls().recognises(head)]
    if len(names) == 1:
        return names[0]
    first = head.split("\n", 1)[0]
    if names:
        raise DataFault(f"{path} could be {' or '.join(names)}", f"--labels-format {names[0]}")
    raise DataFault(
        f"{path} is of no known label format; its first line is: {first[:80]!a}",
        "a plain CSV has a first line with path or uid, label or labels, and split if wanted; "
        f"--labels-format names one of {', '.join(formats.names())}",
    )


def folder_rows(sources: Iterable[str]) -> list[LabelRow]:
    """A row per video in a folder: dogs/1.mp4 is of class dogs. A split folder may stand before: train/dogs/1.mp4."""
    rows = []
    for line, source in enumerate(sources, start=1):
        *folders, _ = source.split("/")
        if folders and folders[-1] not in ("", ".", ".."):
            split = next((name for name in folders[:-1] if name in _SPLIT_FOLDERS), "")
            rows.append(LabelRow(source, "path", (folders[-1],), split, line, origin=FOLDERS))
    if not rows:
        raise DataFault("--labels folders: no video lies in a folder", "videos/dogs/1.mp4 gives the label dogs")
    return rows


_SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test", "eval"})


def check_known(labels: Iterable[tuple[str, str]], known: tuple[str, ...], list_name: str) -> None:
    """DataFault for the first label that is not in the list; `labels` are (label, where it was found)."""
    names = set(known)
    wrong: dict[str, str] = {}
    for label, where in labels:
        if label not in names:
            wrong.setdefault(label, where)
    if not wrong:
        return
    label, where = next(iter(wrong.items()))
    more = f" ({len(wrong)} such labels)" if len(wrong) > 1 else ""
    close = difflib.get_close_matches(label, known, n=1) or [n for n in known if n.lower() == label.lower()][:1]
    hint = f"did you mean '{close[0]}'?" if close else f"the list has {len(known)} names, the first is '{known[0]}'"
    raise DataFault(f"{where}: label '{label}' is not in {list_name}{more}", hint)


def _once(path: Path, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataFault(f"the label list {path} has '{name}' more than once", "each label stands on one line")
        seen.add(name)


def _text(path: Path) -> str:
    # Names of files need not be UTF-8; a byte order mark is Excel's.
    return _bytes(path).decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _sha(path: Path | None) -> str:
    return sha256(_bytes(path)).hexdigest() if path else ""


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageFault(f"cannot read {path}: {error.strerror}", "check the path") from error
