"""Curves of a study, for example over labels per class: what stands in their tables and in their plot."""

from collections.abc import Mapping
from typing import Any

from kdctool.recipe.study_parts import Curve
from kdctool.stages.sections import Section
from kdctool.stages.sweep_arms import PlannedArm
from kdctool.stages.sweep_cell import Record
from kdctool.stages.sweep_plan import Plan
from kdctool.stages.sweep_values import NEVER, Spread, interval, lacks, number, spread, values


def make(plan: Plan, records: Mapping[str, Record]) -> tuple[list[Section], list[dict[str, Any]]]:
    """A table and the plain values of every curve."""
    sections, told = [], []
    for curve in plan.study.curves:
        found = {endpoint: values(plan, records, endpoint) for endpoint in curve.endpoints}
        spreads = {arm.name: [spread(found[one][arm.name]) for one in curve.endpoints] for arm in plan.arms}
        sections.append(_table(plan, curve, spreads))
        told.append(_plain(plan, curve, spreads))
    return sections, told


def _table(plan: Plan, curve: Curve, spreads: dict[str, list[Spread]]) -> Section:
    rows = []
    for arm in plan.arms:
        own = spreads[arm.name]
        counts = sorted({item.n for item in own})
        cells = [_cell(plan, arm, one, item) for one, item in zip(curve.endpoints, own, strict=True)]
        rows.append([arm.name, arm.title, " to ".join(map(str, {counts[0]: 0, counts[-1]: 0})), *cells])
    columns = ["arm", "what it is", "n", *(label for label, _ in curve.points)]
    return Section(f"curve: {curve.name}, by {curve.x}: mean (95 % over seeds)", columns, rows)


def _cell(plan: Plan, arm: PlannedArm, endpoint: str, item: Spread) -> str:
    if lacks(plan, arm, endpoint):
        return NEVER
    return number(item.mean) + ("" if (told := interval(item.low, item.high)) == "-" else f" ({told})")


def _plain(plan: Plan, curve: Curve, spreads: dict[str, list[Spread]]) -> dict[str, Any]:
    return {
        "name": curve.name,
        "x": curve.x,
        "points": [label for label, _ in curve.points],
        "endpoints": list(curve.endpoints),
        "arms": {arm.name: [item.plain() for item in spreads[arm.name]] for arm in plan.arms},
    }
