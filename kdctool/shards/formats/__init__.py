"""Label files as data sets publish them. A format is one file with one registered class:

    @formats.register("mine")
    class Mine:
        example = "..."                                  # a few lines of such a file; the tests read it
        def recognises(self, text: str) -> bool: ...     # from the first characters of a file
        def rows(self, file: LabelFile) -> Iterator[LabelRow]: ...

Recognisers must not overlap: a file that two formats claim is refused.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from kdctool.errors import DataFault
from kdctool.registry import Registry

formats = Registry("label format", __name__)

SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}")
By = Literal["path", "uid", "name", "video"]
"""What the `clip` of a row is: the path of a source; a uid; a file name or its stem; the id of a source video."""
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as shares of the whole source picture."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One clip of a label file. `start_s` and `end_s` are where it lies in the source video, where that is said."""

    clip: str
    by: By
    labels: tuple[str, ...]
    split: str
    line: int
    """Line of a CSV, or place in a JSON list, from 1."""
    start_s: float | None = None
    end_s: float | None = None
    boxes: tuple[Box, ...] = ()
    origin: str = ""
    """The label file."""

    @property
    def where(self) -> str:
        return f"{self.origin}:{self.line}"


@dataclass(frozen=True)
class LabelFile:
    """The text of a label file, and how faults name it."""

    path: Path
    text: str
    known: frozenset[str] = frozenset()
    """Names of the label list: a cell that is one of them as a whole is one label."""

    def where(self, line: int) -> str:
        return f"{self.path}:{line}"

    def fault(self, line: int, cause: str, next_step: str = "correct the line, or delete it") -> DataFault:
        return DataFault(f"{self.where(line)}: {cause}", next_step)

    def cells(
        self, delimiter: str = ",", *, comments: bool = False, spaces: bool = False
    ) -> Iterator[tuple[int, list[str]]]:
        """(line, cells) of every line of a CSV that is not blank.

        `comments` passes over lines that begin with #; `spaces` keeps those that a cell begins with.
        """
        reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=delimiter, skipinitialspace=not spaces)
        try:
            for row in reader:
                if any(cell.strip() for cell in row) and not (comments and row[0].startswith("#")):
                    yield reader.line_num, row
        except csv.Error as error:
            raise self.fault(reader.line_num, str(error), "is it a CSV file in UTF-8?") from error

    def seconds(self, line: int, text: str) -> float:
        """A time of a cell."""
        if not is_number(text):
            raise self.fault(line, f"{text.strip()!a} is not a time in seconds")
        return float(text)

    def split(self, line: int, text: str) -> str:
        """The split of a cell; empty when there is none."""
        return check_split(text.strip(), self.where(line)) if text.strip() else ""


class LabelFormat(Protocol):
    """What a registered class offers."""

    example: str

    def recognises(self, text: str) -> bool: ...

    def rows(self, file: LabelFile) -> Iterator[LabelRow]: ...


def check_split(name: str, where: str) -> str:
    """A split names files: letters, digits, '_' and '-'."""
    if not SPLIT_NAME.fullmatch(name):
        raise DataFault(f"{where}: a split cannot be called {name!a}", "use letters, digits, '_' and '-', at most 40")
    return name


def first_rows(text: str, delimiter: str = ",", count: int = 2) -> list[list[str]]:
    """The first lines of a CSV that are neither blank nor comments, for recognisers."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")][:count]
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
    except csv.Error:
        return []


def is_number(text: str) -> bool:
    """Whether a cell is a plain number, such as 30 or 30.000."""
    return re.fullmatch(r"\s*\d{1,9}(\.\d{0,9})?\s*", text) is not None


def split_cell(cell: str, known: frozenset[str] = frozenset(), *, commas: bool) -> list[str]:
    """The labels in one cell, in order, without repetitions or empty ones."""
    cell = cell.strip()
    if cell in known:
        return [cell]
    parts = re.split(r"[;|]", cell)
    if len(parts) == 1 and commas:
        parts = cell.split(",")
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))
