"""What a JSON-lines file says of single clips beside their labels: speaker, gain, instrument. A row per clip.

A row names its clip under `file`: the path of its video below the folder that was extracted, its file name, or its uid.
"""

import json
import math
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdctool.errors import DataFault, UsageFault
from kdctool.files import digest
from kdctool.tasks.rows import match

CLIP = "file"
_NAME = re.compile(r"[A-Za-z0-9_]+")
_MOST_NAMED = 3
"""Clips without a value that a note names."""


@dataclass(frozen=True)
class _Row:
    clip: str
    where: str
    values: dict[str, tuple[str, ...]]
    """Attribute -> its values as JSON; none where the row does not say."""


@dataclass(frozen=True)
class Values:
    """One attribute of the clips that are scored."""

    marks: NDArray[np.float32]
    """(N, values) 1 where the clip has the value."""
    note: str
    """Which clips have none, or nothing."""


@dataclass(frozen=True)
class Attributes:
    """The rows of a file, as far as the attributes `by` go."""

    path: Path
    by: tuple[str, ...]
    rows: tuple[_Row, ...]
    sha256: str

    @classmethod
    def read(cls, path: Path, by: str) -> "Attributes":
        """UsageFault for a file that is not there and for an attribute that no row has; DataFault for a bad row."""
        names = tuple(dict.fromkeys(name.strip() for name in by.split(",") if name.strip()))
        try:
            data = path.read_bytes()
            lines = data.decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageFault(
                f"the attributes {path} cannot be read: {error}", "name a JSON-lines file with a row per clip"
            ) from error
        told = [(number, _tree(path, number, line)) for number, line in enumerate(lines, 1) if line.strip()]
        known = dict.fromkeys(
            key for _, tree in told for key, value in tree.items() if key != CLIP and _is_plain(value)
        )
        strange = [name for name in names if name not in known or not _NAME.fullmatch(name)]
        if not names or strange:
            raise UsageFault(
                f"attributes = {path} gives no {', '.join(strange)}" if strange else f"which attributes of {path}?",
                f"--option by=NAME,NAME of: {', '.join(known) or 'nothing, it has no row with a plain value'}",
            )
        rows = tuple(
            _Row(str(tree[CLIP]), f"{path}:{number}", _values(path, number, tree, names)) for number, tree in told
        )
        return cls(path, names, rows, sha256(data).hexdigest())

    @property
    def tag(self) -> str:
        """Eight hex digits of what the file says and what is read of it."""
        return digest([self.sha256, sorted(self.by)])[:8]

    def of(self, uids: list[str], abouts: list[dict[str, Any]]) -> dict[str, Values]:
        """Every attribute of the clips `uids`; DataFault where two rows say different things of one clip."""
        rows: dict[int, _Row] = {}
        for row, places in zip(self.rows, match(self.path, self.rows, uids, abouts), strict=True):
            for place in places:
                before = rows.setdefault(place, row)
                if before.values != row.values:
                    raise DataFault(f"{before.where} and {row.where} are about the same clip", "delete one of them")
        return {name: self._column(name, rows, uids) for name in self.by}

    def about(self, found: dict[str, Values]) -> dict[str, Any]:
        """For details.json: the file, and how many clips have each attribute."""
        counts = {
            name: {"clips": int(values.marks.any(1).sum()), "values": values.marks.shape[1]}
            for name, values in found.items()
        }
        return {"path": str(self.path), "sha256": self.sha256, "rows": len(self.rows), "by": counts}

    def _column(self, name: str, rows: dict[int, _Row], uids: list[str]) -> Values:
        told = [rows[i].values[name] if i in rows else () for i in range(len(uids))]
        place = {value: number for number, value in enumerate(sorted({value for values in told for value in values}))}
        marks = np.zeros((len(uids), len(place)), np.float32)
        for i, values in enumerate(told):
            marks[i, [place[value] for value in values]] = 1
        lacking = {
            "row": [uid for i, uid in enumerate(uids) if i not in rows],
            name: [uid for i, uid in enumerate(uids) if i in rows and not told[i]],
        }
        parts = [f"{self.path.name} has no {what} for {_named(who)}" for what, who in lacking.items() if who]
        scored = len(uids) - sum(map(len, lacking.values()))
        return Values(marks, f"over {scored} of {len(uids)} clips: {'; '.join(parts)}" if parts else "")


def _named(uids: list[str]) -> str:
    more = f" and {len(uids) - _MOST_NAMED} more" if len(uids) > _MOST_NAMED else ""
    return f"{len(uids)} ({', '.join(uids[:_MOST_NAMED])}{more})"


def _tree(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataFault(f"{path}:{number} is no JSON: {error}", "write one object per line") from error
    if not isinstance(tree, dict) or not isinstance(tree.get(CLIP), str) or not tree[CLIP]:
        raise DataFault(f"{path}:{number} names no clip", f'a row is an object with "{CLIP}": the path of the video')
    return tree


def _values(path: Path, number: int, tree: dict[str, Any], names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name in names:
        value = tree.get(name)
        if value is not None and not _is_plain(value):
            raise DataFault(
                f"{path}:{number}: {name} = {json.dumps(value)[:60]} is no value that clips can share",
                "a text, a number, true or false, or a list of these",
            )
        several = value if isinstance(value, list) else [] if value is None else [value]
        found[name] = tuple(sorted({json.dumps(item) for item in several}))
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) and not isinstance(item, list) for item in value)
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
