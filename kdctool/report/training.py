"""The curves of a run, grouped as a reader looks for them, each with its numbers below it."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kdctool.report.draft import Draft
from kdctool.report.figures import Series, curve, tone_of
from kdctool.report.names import shown, title
from kdctool.report.scales import thin
from kdctool.report.tables import Cell, Table, count, free, known
from kdctool.report.wording import CURVES, MACHINE, curve_title

PER_RANK = "clips_per_s_per_rank"
ROWS = 50
"""Rows of the table below a chart; the embedded JSON has all points that are drawn."""
FIRST = (
    "loss",
    "reconstruction",
    "contrastive",
    "self_distillation",
    "classification",
    "contrastive_accuracy",
    "accuracy",
)


@dataclass(frozen=True)
class Chart:
    """One drawing, its legend and its table."""

    id: str
    title: str
    drawing: Markup
    legend: tuple[tuple[str, str], ...]
    """Name and tone; empty for a single curve."""
    table: Table
    last: str
    skipped: int
    """Values that are no finite number, and so are not drawn."""


@dataclass(frozen=True)
class Training:
    """All charts: of the model, then of the machine."""

    learning: tuple[Chart, ...]
    machine: tuple[Chart, ...]
    num_rows: int


def training(rows: list[dict[str, Any]], draft: Draft) -> Training:
    """Charts of the rows of metrics.jsonl; a name seen in no row has no chart."""
    names = [name for row in rows for name in row if name not in ("step", "epoch")]
    if all(row.get(PER_RANK) == row.get("clips_per_s") for row in rows):
        names = [name for name in names if name != PER_RANK]  # One rank: the same curve twice.
    found = groups(names)
    charts = {name: chart for name, members in found.items() if (chart := _chart(name, members, rows, draft))}
    return Training(
        tuple(chart for name, chart in charts.items() if name not in MACHINE),
        tuple(chart for name, chart in charts.items() if name in MACHINE),
        len(rows),
    )


def groups(names: list[str]) -> dict[str, list[str]]:
    """Curves that belong into one drawing: `rank/audio` with `rank/video`, `x_audio` with `x_video`."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        stem = name.split("/")[0] if "/" in name else name.removesuffix("_audio").removesuffix("_video")
        found.setdefault(stem, []).append(name)
    order = [*FIRST, *(name for name in CURVES if name not in FIRST)]
    return dict(
        sorted(found.items(), key=lambda pair: (order.index(pair[0]) if pair[0] in order else len(order), pair))
    )


def points(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float], int]:
    """Steps and finite values of a metric, and how many values were not finite."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    finite = [(float(step), value) for step, raw in pairs if (value := known(raw)) is not None]
    return [step for step, _ in finite], [value for _, value in finite], len(pairs) - len(finite)


def payload(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Every curve for the embedded JSON, at most as many points as are drawn."""
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "epoch"))
    found = {}
    for name in sorted(names):
        x, y, _ = points(rows, name)
        if x:
            steps, values = thin(x, y)
            found[shown(name)] = {"step": steps, "value": values}
    return found


def _chart(name: str, members: list[str], rows: list[dict[str, Any]], draft: Draft) -> Chart | None:
    series, skipped = [], 0
    for place, member in enumerate(members):
        x, y, bad = points(rows, member)
        skipped += bad
        if x:
            tone = tone_of(member, place) if len(members) > 1 else "plain"
            series.append(Series(shown(member), x, y, tone))
    if not series:
        return None
    heading = curve_title(name)
    legend = tuple((title(one.name.removeprefix(f"{name}/").removeprefix(f"{name}_")), one.tone) for one in series)
    return Chart(
        f"curve-{len(draft.tables)}",
        heading,
        curve(heading, series),
        legend if len(series) > 1 else (),
        _table(heading, series, draft),
        f"{series[0].y[-1]:.4g}" if len(series) == 1 else "",
        skipped,
    )


def _table(heading: str, series: list[Series], draft: Draft) -> Table:
    steps = sorted({step for one in series for step in one.x})
    values = [dict(zip(one.x, one.y, strict=True)) for one in series]
    if len(steps) > ROWS:
        places = sorted({round(n * (len(steps) - 1) / (ROWS - 1)) for n in range(ROWS)})
        caption = f"{heading}: {len(places)} of {len(steps):,} steps"
        steps = [steps[place] for place in places]
    else:
        caption = f"{heading}: every step that was logged"

    def cells(step: float) -> list[Cell]:
        return [count(int(step)), *(free(value.get(step)) for value in values)]

    columns = ("step", *(one.name for one in series))
    return draft.table(f"curve-{len(draft.tables)}-table", caption, columns, [cells(step) for step in steps])
