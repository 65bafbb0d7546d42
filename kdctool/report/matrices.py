"""Square tables as drawings: confusion of classes, likeness of layers."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from kdctool.report.names import shown

NAMED = 30
"""Rows up to which each has its name beside it."""
LONGEST = 22
"""Characters of a name."""


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """True classes down, answers across; a cell is as strong as its share of the true class."""
    cells = []
    for i, row in enumerate(counts):
        total = sum(row)
        cells.append(
            [(number / total if total else 0.0, str(number) if number else "", i == j) for j, number in enumerate(row)]
        )
    return _matrix(labels, cells, f"Confusion of {len(labels)} classes: true classes down, answers across")


def likeness(labels: Sequence[str], values: Sequence[Sequence[float | None]], said: str) -> Markup:
    """Values in 0-1 of every pair; one that is not known stays empty."""
    cells = [
        [(0.0, "", True) if v is None else (v, f"{v:.2f}"[1:] if v < 0.995 else "1", True) for v in row]
        for row in values
    ]
    return _matrix(labels, cells, said)


def _matrix(labels: Sequence[str], cells: Sequence[Sequence[tuple[float, str, bool]]], said: str) -> Markup:
    """cells: (strength in 0-1, text, whether it is drawn in the colour of right answers)."""
    num = len(labels)
    names = [_short(label) for label in labels] if num <= NAMED else []
    width = max((len(name) for name in names), default=0)
    left, top = 10 + 6.6 * width, 10 + 5.6 * width
    cell = max(8, min(34, 560 // max(num, 1)))
    right = 4 + 3.6 * width  # The last name leans over the edge.
    parts = []
    for i, name in enumerate(map(escape, names)):
        middle = i * cell + cell / 2
        parts.append(
            f'<text class="tick" x="{left - 6:g}" y="{top + middle + 4:g}" text-anchor="end">{name}</text>'
            f'<text class="tick" transform="translate({left + middle + 4:g} {top - 6:g}) rotate(-55)">{name}</text>'
        )
    for i, row in enumerate(cells):
        for j, (strength, text, is_right) in enumerate(row):
            place = f'x="{left + cell * j:g}" y="{top + cell * i:g}" width="{cell - 1}" height="{cell - 1}"'
            parts.append(f'<rect class="cell" {place}/>')
            if not text:
                continue
            tone = "right" if is_right else "wrong"
            parts.append(
                f'<rect class="cell {tone}" {place} fill-opacity="{0.1 + 0.9 * min(max(strength, 0), 1):.2f}"/>'
            )
            if cell >= 22:
                ink = "on" if strength > 0.6 else "off"
                x, y = left + cell * (j + 0.5), top + cell * (i + 0.5) + 4
                parts.append(f'<text class="in-cell {ink}" x="{x:g}" y="{y:g}" text-anchor="middle">{text}</text>')
    size = (round(left + cell * num + right), round(top + cell * num + 2))
    return Markup(
        '<svg class="matrix-drawing" viewBox="0 0 {0} {1}" width="{0}" role="img" aria-label="{2}">{3}</svg>'
    ).format(*size, said, Markup("".join(parts)))


def _short(name: str) -> str:
    text = shown(name)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
