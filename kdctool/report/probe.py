"""How the probe's score grows with the number of labels."""

from typing import Any

from kdctool.report.draft import Draft, Part
from kdctool.report.figures import Series, curve
from kdctool.report.inputs import Evaluation
from kdctool.report.tables import free, known, said, score


def part(evaluation: Evaluation, draft: Draft, anchor: str) -> Part | None:
    """The curve over label budgets; None where there is only one."""
    points: list[dict[str, Any]] = evaluation.found.get("curve") or []
    told = [(known(point.get("train_clips")), known(point.get("value")), point) for point in points]
    placed = [(clips, value, point) for clips, value, point in told if clips is not None and value is not None]
    if len(placed) < 2:
        return None
    placed.sort(key=lambda row: row[0])
    rows = [
        [
            said(point.get("labels", "")),
            free(clips),
            score("", value),
            score("", point.get("low")),
            score("", point.get("high")),
        ]
        for clips, value, point in placed
    ]
    columns = ("labels", "labelled clips", "value", "low", "high")
    table = draft.table(f"{anchor}-curve", "Linear probe by number of labels", columns, rows)
    series = Series("linear probe", [clips for clips, _, _ in placed], [value for _, value, _ in placed], "plain")
    return Part("probe.html", {"drawing": curve("Linear probe", [series], "labelled clips"), "table": table})
