"""The top of a page: a card per headline number, and what a reader must know before believing any."""

import re
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kdctool.report.figures import interval, spark
from kdctool.report.inputs import Evaluation, Expected
from kdctool.report.tables import Cell, bound, known, metric_text, said, score
from kdctool.report.training import points
from kdctool.report.wording import HEADLINES, curve_title, metric_meaning, task_title

METRIC_COLUMNS = ("metric", "value", "low", "high", "chance")


@dataclass(frozen=True)
class Card:
    """One number, large."""

    title: str
    name: str
    value: str
    under: str
    """Interval, chance, n of N."""
    drawing: Markup
    href: str
    doubt: str = ""
    """Why the number may mean nothing."""


def cards(evaluation: Evaluation, anchor: str) -> list[Card]:
    """The headline numbers of an evaluation."""
    metrics = in_order(evaluation)
    wanted = [name for name in HEADLINES.get(evaluation.task, tuple(metrics)) if name in metrics]
    if evaluation.task not in HEADLINES or (HEADLINES[evaluation.task] and not wanted):
        wanted = list(metrics)
    return [_card(name, metrics[name], evaluation, anchor) for name in wanted[:2]]


def in_order(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """The metrics as a reader expects them: headlines, then by direction, r1 before r10, ranks last."""
    first = HEADLINES.get(evaluation.task, ())

    def place(name: str) -> tuple[Any, ...]:
        way = name[:3] if evaluation.task == "retrieval" else ""
        numbered = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
        # Halves of a split alternate between text and number, so equal places compare.
        return (0, first.index(name)) if name in first and not way else (1, way, name.endswith("_rank"), numbered)

    return {name: evaluation.metrics[name] for name in sorted(evaluation.metrics, key=place)}


def training_card(rows: list[dict[str, Any]]) -> Card | None:
    """The loss, from its first value to its last."""
    _, loss, _ = points(rows, "loss")
    if not loss:
        return None
    steps = int(rows[-1]["step"]) + 1
    under = f"from {loss[0]:.4g}, {steps:,} steps"
    return Card("Training", curve_title("loss"), f"{loss[-1]:.4g}", under, spark(loss), "training")


def missing_text(results: dict[str, Any]) -> str:
    """`38 of 40 clips scored; missing 2: 1 no_audio, 1 no_label`."""
    n, total = results.get("n_scored"), results.get("n_total")
    text = f"{n:,} of {total:,} clips scored" if isinstance(n, int) and isinstance(total, int) else "n is not known"
    missing = results.get("missing") or {}
    if not missing:
        return text
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(missing.items()))
    return f"{text}; missing {sum(missing.values()):,}: {reasons}"


def metric_rows(evaluation: Evaluation, expected: tuple[Expected, ...]) -> tuple[tuple[str, ...], list[list[Cell]]]:
    """Columns and rows of the table of an evaluation: value, interval, chance, and the published number if any."""
    published = {row.metric: row for row in expected if row.task == evaluation.task}
    columns = (*METRIC_COLUMNS, "published", "source") if published else METRIC_COLUMNS
    rows = []
    for name, metric in in_order(evaluation).items():
        value, low, high, chance = (known(metric.get(key)) for key in METRIC_COLUMNS[1:])
        meaning = metric_meaning(evaluation.task, name)
        row = [Cell(name, name, Markup("<small>{}</small>").format(meaning) if meaning else Markup())]
        row.append(score(name, value, interval(value, low, high, chance)))
        row += [bound(name, number) for number in (low, high, chance)]
        if published:
            found = published.get(name)
            row += [score(name, found.value), said(found.source)] if found else [Cell("", ""), Cell("", "")]
        rows.append(row)
    return columns, rows


def _card(name: str, metric: dict[str, Any], evaluation: Evaluation, anchor: str) -> Card:
    value, low, high, chance = (known(metric.get(key)) for key in METRIC_COLUMNS[1:])
    parts = []
    if low is not None and high is not None:
        parts.append(f"95 % {metric_text(name, low)} to {metric_text(name, high)}")
    if chance is not None:
        parts.append(f"chance {metric_text(name, chance)}")
    n, total = evaluation.results.get("n_scored"), evaluation.results.get("n_total")
    parts.append(f"n {n} of {total}")
    doubt = ""
    if low is not None and high is not None and chance is not None and low <= chance <= high:
        doubt = "not told apart from chance"
    elif low is None or high is None:
        doubt = "spread not known"
    return Card(
        task_title(evaluation.task),
        metric_meaning(evaluation.task, name) or name,
        "unknown" if value is None else metric_text(name, value),
        " · ".join(parts),
        interval(value, low, high, chance),
        anchor,
        doubt,
    )
