"""The table of a study: every seed of every arm, what differs and how surely, and what it cost."""

import math
from dataclasses import dataclass
from typing import Any

from kdctool import __version__
from kdctool.recipe.study_parts import Pairs
from kdctool.stages import sweep_clips, sweep_curves, sweep_notes, sweep_references
from kdctool.stages.sections import Section
from kdctool.stages.sweep_arms import PlannedArm
from kdctool.stages.sweep_cell import Record
from kdctool.stages.sweep_plan import Plan
from kdctool.stages.sweep_references import UNINFORMATIVE, Judged
from kdctool.stages.sweep_values import (
    NEVER,
    Values,
    finite,
    flops_of,
    interval,
    lacks,
    number,
    probability,
    spread,
    values,
)
from kdctool.tasks.contrasts import Contrast, holm, paired


@dataclass(frozen=True)
class Told:
    """All that is told of a study, as tables and as plain values."""

    title: str
    sections: list[Section]
    notes: list[str]
    payload: dict[str, Any]

    def markdown(self) -> str:
        """The same, as a file."""
        parts = [f"# {self.title}\n"]
        for section in self.sections:
            rows = [section.columns, ["---"] * len(section.columns), *section.rows]
            parts.append(f"## {section.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
        return "\n".join(parts) + "\n" + "".join(f"- {note}\n" for note in self.notes)


@dataclass(frozen=True)
class _Compared:
    endpoint: str
    a: str
    b: str
    contrast: Contrast | None
    """None where the arms have no seed in common yet."""
    clips: sweep_clips.OverClips | None


def make(plan: Plan, records: dict[str, Record], amendments: list[dict[str, Any]]) -> Told:
    """Tables and values from what the cells left."""
    study = plan.study
    found = {endpoint: values(plan, records, endpoint) for endpoint in study.endpoints}
    judged = sweep_references.judge(plan, found)
    first = [_compared(plan, found, study.primary.endpoint, pair) for pair in study.primary.contrasts]
    second = [_compared(plan, found, endpoint, pair) for endpoint, pair in _secondary(plan)]
    adjusted = holm([item.contrast.p if item.contrast else math.nan for item in second])
    curves, curve_values = sweep_curves.make(plan, records)
    sections = [_arms(plan, endpoint, found[endpoint]) for endpoint in study.endpoints]
    sections += sweep_references.table(plan, judged)
    if first:
        sections.append(_contrasts(plan, f"primary contrasts, {study.primary.endpoint}", first, None, judged))
    if second:
        sections.append(_contrasts(plan, "secondary contrasts, p adjusted by Holm", second, adjusted, judged))
    sections += [*curves, _costs(plan, records)]
    payload = {
        "study": study.name,
        "protocol": study.protocol,
        "description": study.description,
        "endpoint": study.primary.endpoint,
        "seeds": list(plan.seeds),
        "arms": _arm_values(plan, records, found),
        "cells": {name: _cell(record) for name, record in records.items()},
        "references": sweep_references.plain(plan, judged),
        "primary": [_plain(plan, item, None, judged) for item in first],
        "secondary": [_plain(plan, item, p, judged) for item, p in zip(second, adjusted, strict=True)],
        "curves": curve_values,
        "best": _best(plan, found[study.primary.endpoint]),
        "taken_over": plan.taken_over,
        "amendments": amendments,
        "data_digest": plan.data_digest,
        "kdctool": __version__,
    }
    tested = [(item.contrast.p, item.contrast.n) for item in first if item.contrast]
    tested += [(p, item.contrast.n) for item, p in zip(second, adjusted, strict=True) if item.contrast]
    return Told(f"Study {study.name}", sections, sweep_notes.make(plan, records, tested, amendments), payload)


def _secondary(plan: Plan) -> list[tuple[str, tuple[str, str]]]:
    """Every endpoint with every pair, but for what is primary."""
    study = plan.study
    pairs: Pairs = tuple(dict.fromkeys((*study.primary.contrasts, *study.secondary.contrasts)))
    primary = {(study.primary.endpoint, pair) for pair in study.primary.contrasts}
    every = [(endpoint, pair) for endpoint in study.endpoints for pair in pairs]
    return [item for item in every if item not in primary]


def _compared(plan: Plan, found: dict[str, Values], endpoint: str, pair: tuple[str, str]) -> _Compared:
    a, b = pair
    one, other = found[endpoint][a], found[endpoint][b]
    if not one.keys() & other.keys():
        return _Compared(endpoint, a, b, None, None)
    contrast = paired(one, other)
    return _Compared(endpoint, a, b, contrast, sweep_clips.over_clips(plan, endpoint, a, b, contrast.seeds))


def _arms(plan: Plan, endpoint: str, of_arms: Values) -> Section:
    rows = []
    for arm in plan.arms:
        own = of_arms[arm.name]
        told = spread(own)
        never = bool(lacks(plan, arm, endpoint))
        cells = [number(own.get(seed)) for seed in plan.seeds] + [number(told.mean), interval(told.low, told.high)]
        rows.append([arm.name, arm.title, str(len(own)), *([NEVER] * len(cells) if never else cells)])
    columns = ["arm", "what it is", "n", *(f"seed {seed}" for seed in plan.seeds), "mean", "95 % over seeds"]
    return Section(endpoint, columns, rows)


def _contrasts(
    plan: Plan, title: str, compared: list[_Compared], adjusted: list[float] | None, judged: dict[str, Judged]
) -> Section:
    several = len({item.endpoint for item in compared}) > 1
    rows = []
    for place, item in enumerate(compared):
        name = [f"{item.a} - {item.b}", *([item.endpoint] if several else [])]
        contrast = item.contrast
        if contrast is None:
            rows.append([*name, "0", *[NEVER if _never(plan, item) else "-"] * 7])
            continue
        p = adjusted[place] if adjusted else contrast.p
        rows.append(
            [
                *name,
                str(contrast.n),
                " ".join(f"{value:+.4f}" for value in contrast.differences),
                f"{contrast.mean:+.4f}",
                interval(contrast.low, contrast.high),
                interval(contrast.low90, contrast.high90),
                probability(p),
                interval(item.clips.low, item.clips.high) if item.clips else "-",
                _verdict(contrast.verdict(plan.study.equivalence, p), judged.get(item.endpoint)),
            ]
        )
    head = ["contrast", *(["endpoint"] if several else []), "n", "each seed", "mean", "95 % over seeds", "90 %"]
    return Section(title, [*head, "p", "95 % over clips", "verdict"], rows)


def _never(plan: Plan, item: _Compared) -> bool:
    """Whether one of the two arms can never give the endpoint."""
    return any(arm.name in (item.a, item.b) and lacks(plan, arm, item.endpoint) for arm in plan.arms)


def _verdict(verdict: str, judged: Judged | None) -> str:
    """The verdict as the table has it: marked where the endpoint cannot tell arms apart."""
    return f"{verdict} (endpoint {UNINFORMATIVE})" if judged and judged.informative is False else verdict


def _costs(plan: Plan, records: dict[str, Record]) -> Section:
    rows = []
    for arm in plan.arms:
        own = [record for record in records.values() if record.arm == arm.name and record.state == "done"]
        devices = ", ".join(sorted({record.device for record in own if record.device}))
        rows.append([arm.name, str(arm.steps), *flops_of(arm), number(_seconds(arm, own), 1), devices or "-"])
    columns = ["arm", "steps", "GFLOP per clip", "PFLOP", "seconds of training, mean", "device"]
    return Section("what it cost", columns, rows)


def _seconds(arm: PlannedArm, done: list[Record]) -> float | None:
    """Mean seconds of an arm's own training, without the evaluations."""
    seconds = [record.seconds[arm.training] for record in done if arm.training in record.seconds]
    return sum(seconds) / len(seconds) if seconds else None


def _arm_values(plan: Plan, records: dict[str, Record], found: dict[str, Values]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for arm in plan.arms:
        own = [r for r in records.values() if r.arm == arm.name and r.state == "done"]
        endpoints = {}
        for endpoint, of_arms in found.items():
            seeds = of_arms[arm.name]
            by_seed = {str(seed): value for seed, value in sorted(seeds.items())}
            endpoints[endpoint] = {**spread(seeds).plain(), "seeds": by_seed}
        told[arm.name] = {
            "title": arm.title,
            "training": arm.training,
            "steps": arm.steps,
            "flops_per_clip": arm.flops_per_clip or None,
            "flops": arm.flops or None,
            "seconds": _seconds(arm, own),
            "endpoints": endpoints,
        }
    return told


def _plain(plan: Plan, item: _Compared, adjusted: float | None, judged: dict[str, Judged]) -> dict[str, Any]:
    informative = judged[item.endpoint].informative if judged else None
    told: dict[str, Any] = {"endpoint": item.endpoint, "a": item.a, "b": item.b, "n": 0, "informative": informative}
    if item.contrast is None:
        return told
    contrast = item.contrast
    p = contrast.p if adjusted is None else adjusted
    for name in ("mean", "low", "high", "low90", "high90", "p"):
        told[name] = finite(getattr(contrast, name))
    told["n"] = contrast.n
    told["seeds"] = {str(s): d for s, d in zip(contrast.seeds, contrast.differences, strict=True)}
    told["p_holm"] = None if adjusted is None else finite(adjusted)
    told["verdict"] = contrast.verdict(plan.study.equivalence, p)
    clips = item.clips
    told["over_clips"] = clips and {
        "low": finite(clips.low),
        "high": finite(clips.high),
        "clips": clips.clips,
        "clusters": clips.clusters,
    }
    return told


def _best(plan: Plan, of_arms: Values) -> dict[str, Any] | None:
    """The best arm by its mean, once every arm has every seed: a choice from unequal numbers would favour luck.

    References are no candidates. With it stands all that another study takes over of it.
    """
    arms = [arm for arm in plan.arms if not arm.is_reference]
    if not arms or any(set(of_arms[arm.name]) != set(plan.seeds) for arm in arms):
        return None
    sign = 1 if plan.study.primary.goal == "max" else -1
    best = max(arms, key=lambda arm: sign * sum(of_arms[arm.name].values()))
    return {"arm": best.name, "set": best.own, "length": best.length}


def _cell(record: Record) -> dict[str, Any]:
    names = ("arm", "seed", "state", "cause", "seconds", "values", "device")
    return {name: getattr(record, name) for name in names}
