"""Which endpoints can tell arms apart: where a plain arm lies between a random and a supervised encoder."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdctool.recipe.study_parts import References
from kdctool.stages.sections import Section
from kdctool.stages.sweep_plan import Plan
from kdctool.stages.sweep_values import NEVER, Values, finite, lacks, number

UNINFORMATIVE = "uninformative"


@dataclass(frozen=True)
class Judged:
    """An endpoint between its references."""

    endpoint: str
    means: dict[str, float]
    """low, plain, high -> mean over the seeds that are there; NaN without any."""
    seeds: dict[str, int]
    share: float
    """Of the gap between low and high, what `plain` closes; NaN where there is no gap to speak of."""
    informative: bool | None
    """None where it cannot be told."""
    why: str


def judge(plan: Plan, values: Mapping[str, Values]) -> dict[str, Judged]:
    """Every endpoint of the study against its references; {} in a study without."""
    asked = plan.study.references
    if asked is None:
        return {}
    return {endpoint: _judged(plan, asked, endpoint, of_arms) for endpoint, of_arms in values.items()}


def _judged(plan: Plan, asked: References, endpoint: str, of_arms: Values) -> Judged:
    arms = {"low": asked.low, "plain": asked.plain, "high": asked.high}
    own = {role: list(of_arms[arm].values()) for role, arm in arms.items()}
    means = {role: sum(told) / len(told) if told else math.nan for role, told in own.items()}
    seeds = {role: len(told) for role, told in own.items()}
    planned = {arm.name: arm for arm in plan.arms}
    for role, arm in arms.items():
        if not own[role]:
            why = lacks(plan, planned[arm], endpoint) or f"{arm} has no finished cell yet"
            return Judged(endpoint, means, seeds, math.nan, None, f"cannot be told: {why}")
    few = [f"{arms[role]} {count}" for role, count in seeds.items() if count < len(plan.seeds)]
    partly = f"; so far from {', '.join(few)} of {len(plan.seeds)} seeds" if few else ""
    gap = means["high"] - means["low"]
    # Which end is good is known of the primary endpoint alone; of the others more is taken to be better.
    falls = endpoint == plan.study.primary.endpoint and plan.study.primary.goal == "min"
    if gap == 0 or (gap < 0) != falls:
        relation = "equal" if gap == 0 else "reversed"
        why = f"{UNINFORMATIVE}: {relation}, {arms['high']} is not better than {arms['low']}"
        return Judged(endpoint, means, seeds, math.nan, False, why + partly)
    share = (means["plain"] - means["low"]) / gap
    if asked.least <= share <= asked.most:
        return Judged(endpoint, means, seeds, share, True, "informative" + partly)
    limit = f"under {asked.least:.0%}" if share < asked.least else f"over {asked.most:.0%}"
    return Judged(endpoint, means, seeds, share, False, f"{UNINFORMATIVE}: {limit}{partly}")


def table(plan: Plan, judged: Mapping[str, Judged]) -> list[Section]:
    """The references beside every endpoint; no table in a study without."""
    asked = plan.study.references
    if asked is None:
        return []
    planned = {arm.name: arm for arm in plan.arms}
    rows = []
    for endpoint, item in judged.items():
        means = [
            NEVER if lacks(plan, planned[arm], endpoint) else number(item.means[role])
            for role, arm in (("low", asked.low), ("plain", asked.plain), ("high", asked.high))
        ]
        share = "-" if math.isnan(item.share) else f"{item.share:.1%}"
        rows.append([endpoint, *means, share, item.why])
    columns = ["endpoint", f"low: {asked.low}", f"plain: {asked.plain}", f"high: {asked.high}", "share of the gap"]
    return [Section("references: what the endpoints can tell", [*columns, "verdict"], rows)]


def plain(plan: Plan, judged: Mapping[str, Judged]) -> dict[str, Any] | None:
    """For results.json; None in a study without references."""
    if plan.study.references is None:
        return None
    endpoints = {
        item.endpoint: {
            **{role: finite(mean) for role, mean in item.means.items()},
            "n": item.seeds,
            "share": finite(item.share),
            "informative": item.informative,
            "why": item.why,
        }
        for item in judged.values()
    }
    return {**plan.study.references.model_dump(mode="json"), "endpoints": endpoints}
