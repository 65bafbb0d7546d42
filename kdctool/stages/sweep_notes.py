"""What stands under the tables of a study: what is missing, what was taken over, what may not be claimed."""

from typing import Any

from kdctool.stages.sweep_cell import Record
from kdctool.stages.sweep_plan import Plan
from kdctool.stages.sweep_values import NEVER, lacks

CLAIM_P, CLAIM_SEEDS = 0.01, 8
"""A claim at this p takes so many fresh seeds of a frozen protocol."""


def make(
    plan: Plan, records: dict[str, Record], tested: list[tuple[float, int]], amendments: list[dict[str, Any]]
) -> list[str]:
    """All notes, in their order. `tested` has p, as the tables print it, and n of each contrast."""
    return [
        *_states(records),
        *_taken_over(plan),
        *_never(plan),
        *flops_note(plan),
        f"'no effect' is said when the 90 % interval over seeds lies within +-{plan.study.equivalence:g}; "
        "the interval over clips is a bootstrap with the seeds held fixed",
        *_precision(tested, amendments),
        *_amended(amendments),
    ]


def flops_note(plan: Plan) -> list[str]:
    """How equal the FLOPs are of arms that are meant to cost the same."""
    flops = [arm.flops for arm in plan.arms if arm.name in plan.study.equal_flops]
    if len(flops) < 2 or not min(flops):
        return []
    return [f"FLOPs of {', '.join(plan.study.equal_flops)} lie within {max(flops) / min(flops) - 1:.1%} of each other"]


def _states(records: dict[str, Record]) -> list[str]:
    states: dict[str, list[str]] = {}
    for name, record in records.items():
        states.setdefault(record.state, []).append(name)
    done = len(states.pop("done", []))
    notes = [f"{done} of {len(records)} cells are done"]
    return notes + [f"{state}: {', '.join(names)}" for state, names in sorted(states.items())]


def _taken_over(plan: Plan) -> list[str]:
    return [
        f"arm {name} is {took}, taken over" if name else f"all arms take over what {took} sets"
        for name, took in plan.taken_over.items()
    ]


def _never(plan: Plan) -> list[str]:
    """Which arms can never give which endpoints, by the reason."""
    found: dict[str, list[str]] = {}
    for arm in plan.arms:
        for endpoint in plan.study.read:
            if why := lacks(plan, arm, endpoint):
                found.setdefault(why, []).append(endpoint)
    return [f"{NEVER} stands for {', '.join(endpoints)}: {why}" for why, endpoints in found.items()]


def _precision(tested: list[tuple[float, int]], amendments: list[dict[str, Any]]) -> list[str]:
    """What a small p is not worth with few seeds, or after the protocol was changed."""
    seeds = [n for p, n in tested if p < CLAIM_P]
    few = min(seeds, default=CLAIM_SEEDS) < CLAIM_SEEDS
    if not few and not (seeds and amendments):
        return []
    here = f"here a p below it comes from {min(seeds)} seeds" if few else "here the protocol was changed"
    return [f"a claim at p < {CLAIM_P:g} takes {CLAIM_SEEDS} fresh seeds of a frozen protocol, {here}: none is made"]


def _amended(amendments: list[dict[str, Any]]) -> list[str]:
    return [
        f"the protocol was changed after it began ({item['reason']}): {'; '.join(item['changes'])}"
        for item in amendments
    ]
