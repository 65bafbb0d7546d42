"""Tables of a page. One object gives the HTML and the embedded JSON, so the two cannot differ."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kdctool.report.names import shown

Value = str | int | float | None
NOTHING = Markup()


@dataclass(frozen=True)
class Cell:
    """A value and how it is written. `figure` is drawn beside it and is not in the JSON."""

    value: Value
    text: str
    figure: Markup = NOTHING

    @property
    def is_number(self) -> bool:
        return isinstance(self.value, int | float) or self.value is None


@dataclass(frozen=True)
class Table:
    """Rows of cells below named columns; `id` is its key in the JSON and its id in the page."""

    id: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = False

    def payload(self) -> dict[str, Any]:
        """The JSON form: raw values, null where a number is not known."""
        return {
            "caption": self.caption,
            "columns": list(self.columns),
            "rows": [[cell.value for cell in row] for row in self.rows],
        }


def make(
    id: str, caption: str, columns: Sequence[str], rows: Iterable[Iterable[Cell]], sortable: bool = False
) -> Table:
    return Table(id, caption, tuple(columns), tuple(tuple(row) for row in rows), sortable)


def said(text: object) -> Cell:
    """A cell of words."""
    return Cell(shown(text), shown(text))


def count(value: int | None) -> Cell:
    """A whole number."""
    return Cell(value, "-" if value is None else f"{value:,}")


def score(name: str, value: Any, figure: Markup = NOTHING) -> Cell:
    """A metric: ranks with one decimal, everything else with three, as `kdctool eval` prints them."""
    number = known(value)
    return Cell(number, "unknown" if number is None else metric_text(name, number), figure)


def bound(name: str, value: Any) -> Cell:
    """A bound or chance of a metric; a dash where none is known."""
    number = known(value)
    return Cell(number, "-" if number is None else metric_text(name, number))


def free(value: Any) -> Cell:
    """Any other number, four digits."""
    number = known(value)
    return Cell(number, "-" if number is None else f"{number:.4g}")


def metric_text(name: str, value: float) -> str:
    text = f"{value:.1f}" if name.endswith("_rank") else f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text


def known(value: Any) -> float | None:
    """A finite number, else None: what is no number or not finite is not known."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
