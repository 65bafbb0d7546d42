"""Label files: which clip is what, and in which split. One reader per format; all of them yield `LabelRow`.

A plain CSV has a header with `path` or `uid`, `label` or `labels`, and `split` if wanted. `label` holds one name, or
several between `;` or `|` (a comma belongs to the name: "playing violin, fiddle"). `labels` holds several between
`;`, `|` or commas.
"""

import csv
import difflib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kdctool.errors import DataFault, UsageFault

SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}")
_COLUMNS = ("path", "uid", "label", "labels", "split")


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One line of a label file. `clip` is a path or, where `by_uid`, a uid."""

    clip: str
    by_uid: bool
    labels: tuple[str, ...]
    split: str
    line: int


def read_label_list(path: Path) -> tuple[str, ...]:
    """The label list: a name per line, in the order that becomes the classes' order."""
    names = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not names:
        raise DataFault(f"the label list {path} is empty", "write one label per line")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataFault(f"the label list {path} has '{twice[0]}' more than once", "each label stands on one line")
    return tuple(names)


def read_labels(path: Path, known: tuple[str, ...] | None = None) -> list[LabelRow]:
    """All rows of a label file. With `known`, a cell that is a name of the list as a whole is one label."""
    return list(_plain_csv(path, _text(path), frozenset(known or ())))


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


def check_split(name: str, where: str) -> str:
    """A split names files: letters, digits, '_' and '-'."""
    if not SPLIT_NAME.fullmatch(name):
        raise DataFault(f"{where}: a split cannot be called {name!a}", "use letters, digits, '_' and '-', at most 40")
    return name


def _plain_csv(path: Path, text: str, known: frozenset[str]) -> Iterator[LabelRow]:
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [cell.strip().lower() for cell in next(reader, [])]
    columns = {name: header.index(name) for name in _COLUMNS if name in header}
    clip = columns.get("uid", columns.get("path"))
    if clip is None or not columns.keys() & {"label", "labels", "split"}:
        raise DataFault(
            f"{path} needs a first line with the columns path or uid, label or labels, and split if wanted",
            f"its first line is: {first[:80]!a}",
        )
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}:{reader.line_num}"
            if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
                raise DataFault(
                    f"{where}: {len(cells)} columns, the header has {len(header)}", "quote cells with commas"
                )
            if not cells[clip].strip():
                raise DataFault(f"{where}: no {header[clip]}", "name the clip, or delete the line")
            labels: list[str] = []
            for name in ("label", "labels"):
                if name in columns:
                    labels += split_cell(cells[columns[name]], known, commas=name == "labels")
            split = cells[columns["split"]].strip() if "split" in columns else ""
            if split:
                check_split(split, where)
            by_uid = "uid" in columns
            name = cells[clip].strip() if by_uid else cells[clip]
            yield LabelRow(name, by_uid, tuple(dict.fromkeys(labels)), split, reader.line_num)
    except csv.Error as error:
        raise DataFault(f"{path}:{reader.line_num}: {error}", "is it a CSV file in UTF-8?") from error


def split_cell(cell: str, known: frozenset[str] = frozenset(), *, commas: bool) -> list[str]:
    """The labels in one cell, in order, without repetitions or empty ones."""
    cell = cell.strip()
    if cell in known:
        return [cell]
    parts = re.split(r"[;|]", cell)
    if len(parts) == 1 and commas:
        parts = cell.split(",")
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _text(path: Path) -> str:
    try:
        # Names of files need not be UTF-8; a byte order mark is Excel's.
        return path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise UsageFault(f"cannot read {path}: {error.strerror}", "check the path") from error
