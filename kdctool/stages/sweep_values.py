"""What the cells of a study measured, by arm and seed, and how numbers stand in its tables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdctool.stages.sweep_arms import PlannedArm
from kdctool.stages.sweep_cell import Record
from kdctool.stages.sweep_plan import Plan
from kdctool.tasks.contrasts import mean_interval

Values = dict[str, dict[int, float]]
"""Arm -> seed -> value."""
NEVER = "\N{EM DASH}"
"""A number that an arm can never give; one that is still to come is a hyphen."""


@dataclass(frozen=True)
class Spread:
    """Mean and 95 % t-interval over seeds; NaN where there is none."""

    n: int
    mean: float
    low: float
    high: float

    def plain(self) -> dict[str, Any]:
        """For results.json."""
        return {"mean": finite(self.mean), "low": finite(self.low), "high": finite(self.high), "n": self.n}


def values(plan: Plan, records: Mapping[str, Record], endpoint: str) -> Values:
    """What the cells that are done say of an endpoint; every arm occurs."""
    found: Values = {arm.name: {} for arm in plan.arms}
    metric = endpoint.partition("/")[2]
    names = [f"{item.key}/{metric}" for item in plan.study.measured_by(endpoint)]
    for record in records.values():
        told = [value for name in names if (value := record.values.get(name)) is not None]
        if record.state == "done" and len(told) == len(names):
            found[record.arm][record.seed] = sum(told) / len(told)
    return found


def spread(seeds: Mapping[int, float]) -> Spread:
    mean, low, high = mean_interval(list(seeds.values())) if seeds else (math.nan,) * 3
    return Spread(len(seeds), mean, low, high)


def lacks(plan: Plan, arm: PlannedArm, endpoint: str) -> str:
    """Why an arm can never give an endpoint, or nothing."""
    return next((why for item in plan.study.measured_by(endpoint) if (why := arm.lacks(item.task))), "")


def flops_of(arm: PlannedArm) -> list[str]:
    """GFLOP per clip and PFLOP in all, for a table; hyphens where they were not counted."""
    if not arm.flops_per_clip:
        return ["-", "-"]
    return [f"{arm.flops_per_clip / 1e9:.3f}", f"{arm.flops / 1e15:.4f}"]


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def number(value: float | None, places: int = 4) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{places}f}"


def probability(p: float) -> str:
    """p with four decimals, or as a power of ten where these would be zeros."""
    return f"{p:.1e}" if 0 < p < 0.5e-4 else number(p)


def interval(low: float, high: float) -> str:
    return "-" if not math.isfinite(low) else f"{low:.4f} to {high:.4f}"
