"""The table of a study: every seed of every arm, what differs and how surely, and what it cost."""

import math
from dataclasses import dataclass
from typing import Any

from kdctool import __version__
from kdctool.recipe.study import Pairs
from kdctool.recipe.write import flat
from kdctool.stages import sweep_clips
from kdctool.stages.sweep_cell import Record
from kdctool.stages.sweep_plan import Plan
from kdctool.tasks.contrasts import Contrast, holm, mean_interval, paired

Values = dict[str, dict[int, float]]
"""Arm -> seed -> value."""


@dataclass(frozen=True)
class Section:
    """A table."""

    title: str
    columns: list[str]
    rows: list[list[str]]


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
    values = {endpoint: _values(plan, records, endpoint) for endpoint in study.endpoints}
    first = [_compared(plan, values, study.primary.endpoint, pair) for pair in study.primary.contrasts]
    second = [_compared(plan, values, endpoint, pair) for endpoint, pair in _secondary(plan)]
    adjusted = holm([item.contrast.p if item.contrast else math.nan for item in second])
    sections = [_arms(plan, endpoint, values[endpoint]) for endpoint in study.endpoints]
    sections += [_contrasts(plan, f"primary contrasts, {study.primary.endpoint}", first, None)] if first else []
    sections += [_contrasts(plan, "secondary contrasts, p adjusted by Holm", second, adjusted)] if second else []
    sections.append(_costs(plan, records))
    payload = {
        "study": study.name,
        "protocol": study.protocol,
        "description": study.description,
        "endpoint": study.primary.endpoint,
        "seeds": list(plan.seeds),
        "arms": _arm_values(plan, records, values),
        "cells": {name: _cell(record) for name, record in records.items()},
        "primary": [_plain(plan, item, None) for item in first],
        "secondary": [_plain(plan, item, p) for item, p in zip(second, adjusted, strict=True)],
        "best": _best(plan, values[study.primary.endpoint]),
        "amendments": amendments,
        "data_digest": plan.data_digest,
        "kdctool": __version__,
    }
    return Told(f"Study {study.name}", sections, _notes(plan, records, amendments), payload)


def flops_note(plan: Plan) -> list[str]:
    """How equal the FLOPs are of arms that are meant to cost the same."""
    flops = [arm.flops for arm in plan.arms if arm.name in plan.study.equal_flops]
    if len(flops) < 2 or not min(flops):
        return []
    return [f"FLOPs of {', '.join(plan.study.equal_flops)} lie within {max(flops) / min(flops) - 1:.1%} of each other"]


def _values(plan: Plan, records: dict[str, Record], endpoint: str) -> Values:
    found: Values = {arm.name: {} for arm in plan.arms}
    metric = endpoint.partition("/")[2]
    names = [f"{item.key}/{metric}" for item in plan.study.measured_by(endpoint)]
    for record in records.values():
        values = [value for name in names if (value := record.values.get(name)) is not None]
        if record.state == "done" and len(values) == len(names):
            found[record.arm][record.seed] = sum(values) / len(values)
    return found


def _secondary(plan: Plan) -> list[tuple[str, tuple[str, str]]]:
    """Every endpoint with every pair, but for what is primary."""
    study = plan.study
    pairs: Pairs = tuple(dict.fromkeys((*study.primary.contrasts, *study.secondary.contrasts)))
    primary = {(study.primary.endpoint, pair) for pair in study.primary.contrasts}
    every = [(endpoint, pair) for endpoint in study.endpoints for pair in pairs]
    return [item for item in every if item not in primary]


def _compared(plan: Plan, values: dict[str, Values], endpoint: str, pair: tuple[str, str]) -> _Compared:
    a, b = pair
    one, other = values[endpoint][a], values[endpoint][b]
    if not one.keys() & other.keys():
        return _Compared(endpoint, a, b, None, None)
    contrast = paired(one, other)
    return _Compared(endpoint, a, b, contrast, sweep_clips.over_clips(plan, endpoint, a, b, contrast.seeds))


def _arms(plan: Plan, endpoint: str, values: Values) -> Section:
    rows = []
    for arm in plan.arms:
        own = values[arm.name]
        cells = [number(own.get(seed)) for seed in plan.seeds]
        mean, low, high = mean_interval(list(own.values())) if own else (math.nan,) * 3
        rows.append([arm.name, arm.title, str(len(own)), *cells, number(mean), interval(low, high)])
    columns = ["arm", "what it is", "n", *(f"seed {seed}" for seed in plan.seeds), "mean", "95 % over seeds"]
    return Section(endpoint, columns, rows)


def _contrasts(plan: Plan, title: str, compared: list[_Compared], adjusted: list[float] | None) -> Section:
    several = len({item.endpoint for item in compared}) > 1
    rows = []
    for place, item in enumerate(compared):
        name = [f"{item.a} - {item.b}", *([item.endpoint] if several else [])]
        contrast = item.contrast
        if contrast is None:
            rows.append([*name, "0", *["-"] * 7])
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
                number(p),
                interval(item.clips.low, item.clips.high) if item.clips else "-",
                contrast.verdict(plan.study.equivalence, p),
            ]
        )
    head = ["contrast", *(["endpoint"] if several else []), "n", "each seed", "mean", "95 % over seeds", "90 %"]
    return Section(title, [*head, "p", "95 % over clips", "verdict"], rows)


def _costs(plan: Plan, records: dict[str, Record]) -> Section:
    rows = []
    for arm in plan.arms:
        own = [record for record in records.values() if record.arm == arm.name and record.state == "done"]
        seconds = [record.seconds.get("pretrain", math.nan) for record in own]
        devices = ", ".join(sorted({record.device for record in own if record.device}))
        mean = sum(seconds) / len(seconds) if seconds else math.nan
        flops = [f"{arm.flops_per_clip / 1e9:.3f}", f"{arm.flops / 1e15:.4f}"]
        rows.append([arm.name, str(arm.steps), *flops, number(mean, 1), devices or "-"])
    columns = ["arm", "steps", "GFLOP per clip", "PFLOP", "seconds of pre-training, mean", "device"]
    return Section("what it cost", columns, rows)


def _notes(plan: Plan, records: dict[str, Record], amendments: list[dict[str, Any]]) -> list[str]:
    states: dict[str, list[str]] = {}
    for name, record in records.items():
        states.setdefault(record.state, []).append(name)
    done = len(states.pop("done", []))
    notes = [f"{done} of {len(records)} cells are done"]
    notes += [f"{state}: {', '.join(names)}" for state, names in sorted(states.items())]
    notes += flops_note(plan)
    notes.append(
        f"'no effect' is said when the 90 % interval over seeds lies within +-{plan.study.equivalence:g}; "
        "the interval over clips is a bootstrap with the seeds held fixed"
    )
    for item in amendments:
        notes.append(f"the protocol was changed after it began ({item['reason']}): {'; '.join(item['changes'])}")
    return notes


def _arm_values(plan: Plan, records: dict[str, Record], values: dict[str, Values]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in plan.arms:
        own = [r for r in records.values() if r.arm == arm.name and r.state == "done"]
        endpoints = {}
        for endpoint, of_arms in values.items():
            seeds = of_arms[arm.name]
            mean, low, high = mean_interval(list(seeds.values())) if seeds else (math.nan,) * 3
            told = {"mean": _finite(mean), "low": _finite(low), "high": _finite(high), "n": len(seeds)}
            endpoints[endpoint] = {**told, "seeds": {str(seed): value for seed, value in sorted(seeds.items())}}
        seconds = [r.seconds["pretrain"] for r in own if "pretrain" in r.seconds]
        found[arm.name] = {
            "title": arm.title,
            "steps": arm.steps,
            "flops_per_clip": arm.flops_per_clip,
            "flops": arm.flops,
            "seconds": sum(seconds) / len(seconds) if seconds else None,
            "endpoints": endpoints,
        }
    return found


def _plain(plan: Plan, item: _Compared, adjusted: float | None) -> dict[str, Any]:
    told: dict[str, Any] = {"endpoint": item.endpoint, "a": item.a, "b": item.b, "n": 0}
    if item.contrast is None:
        return told
    contrast = item.contrast
    p = contrast.p if adjusted is None else adjusted
    for name in ("mean", "low", "high", "low90", "high90", "p"):
        told[name] = _finite(getattr(contrast, name))
    told["n"] = contrast.n
    told["seeds"] = {str(s): d for s, d in zip(contrast.seeds, contrast.differences, strict=True)}
    told["p_holm"] = None if adjusted is None else _finite(adjusted)
    told["verdict"] = contrast.verdict(plan.study.equivalence, p)
    clips = item.clips
    told["over_clips"] = clips and {
        "low": _finite(clips.low),
        "high": _finite(clips.high),
        "clips": clips.clips,
        "clusters": clips.clusters,
    }
    return told


def _best(plan: Plan, values: Values) -> dict[str, Any] | None:
    """The best arm by its mean, once every arm has every seed: a choice from unequal numbers would favour luck."""
    if any(set(values[arm.name]) != set(plan.seeds) for arm in plan.arms):
        return None
    sign = 1 if plan.study.primary.goal == "max" else -1
    best = max(plan.arms, key=lambda arm: sign * sum(values[arm.name].values()))
    return {"arm": best.name, "set": dict(flat(plan.study.arm(best.name).set))}


def _cell(record: Record) -> dict[str, Any]:
    names = ("arm", "seed", "state", "cause", "seconds", "values", "device")
    return {name: getattr(record, name) for name in names}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def number(value: float | None, places: int = 4) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{places}f}"


def interval(low: float, high: float) -> str:
    return "-" if not math.isfinite(low) else f"{low:.4f} to {high:.4f}"
