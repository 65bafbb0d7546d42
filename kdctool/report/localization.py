"""Heat maps over frames, with the boxes that people drew and the place where the map is highest."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from kdctool.report.draft import ANSWERS, Draft, Part
from kdctool.report.figures import boxes
from kdctool.report.inputs import Evaluation, strings
from kdctool.report.names import shown
from kdctool.report.pictures import heat, picture
from kdctool.report.summary import in_order
from kdctool.report.tables import Table, bound, free, known, said
from kdctool.report.wording import BESIDE, located

SUCCESS = 0.5
"""A clip counts as found from this cIoU on."""


@dataclass(frozen=True)
class Located:
    """One clip: media ids of frame and map, the drawing that lies over both."""

    name: str
    uid: str
    frame: str
    map: str
    boxes: Markup
    peak: tuple[int, int]
    """(x, y) of the map's highest pixel."""
    score: float | None
    is_found: bool
    has_rival: bool
    width: int
    height: int


def part(evaluation: Evaluation, draft: Draft, anchor: str) -> Part | None:
    """The clips that the task kept; None where it kept none."""
    assets = evaluation.assets
    if "uids" not in assets or "map" not in assets:
        return None
    uids = strings(assets, "uids")
    if any(len(assets[name]) != len(uids) for name in ("frame", "map", "score")):
        raise ValueError("the arrays of the localisation differ in length")
    clips = [_one(n, uid, evaluation, draft, anchor) for n, uid in enumerate(uids)]
    measure = shown(evaluation.found.get("score") or "cIoU")
    columns = ("clip", measure, "found", "peak x", "peak y")
    rows = [
        [said(c.uid), free(c.score), said("yes" if c.is_found else "no"), free(c.peak[0]), free(c.peak[1])]
        for c in clips
    ]
    table = draft.table(f"{anchor}-clips", "The clips shown here", columns, rows)
    data = {
        "clips": clips,
        "table": table,
        "floors": _floors(evaluation, draft, anchor),
        "measure": measure,
        "success": SUCCESS,
        "has_rival": any(c.has_rival for c in clips),
    }
    return Part("localization.html", data, {"peaks": {c.uid: list(c.peak) for c in clips}})


def _floors(evaluation: Evaluation, draft: Draft, anchor: str) -> Table | None:
    """Every score beside what no model and what wrong sounds reach; None where the task measured no such thing."""
    found: dict[str, dict[str, float | None]] = {}
    for name, metric in in_order(evaluation).items():
        of, beside = located(name)
        found.setdefault(of, {})[beside] = known(metric.get("value"))
    there = [beside for beside in BESIDE if any(beside in row for row in found.values())]
    if len(there) < 2:
        return None
    rows = [[said(of), *(bound(of, row.get(beside)) for beside in there)] for of, row in found.items() if "" in row]
    columns = ("score", *(BESIDE[beside] or "the model" for beside in there))
    return draft.table(f"{anchor}-floors", "Every score beside its floors and beside wrong sounds", columns, rows)


def _one(n: int, uid: str, evaluation: Evaluation, draft: Draft, anchor: str) -> Located:
    assets = evaluation.assets
    frame = assets["frame"][n]
    found = np.nan_to_num(assets["map"][n].astype(np.float32))
    y, x = np.unravel_index(int(found.argmax()), found.shape)
    rivals = _boxes(assets["silent"][n]) if "silent" in assets else []
    score = known(float(assets["score"][n]))
    height, width = found.shape
    drawn = boxes(width, height, [("true", _boxes(assets["boxes"][n])), ("rival", rivals)], (int(x), int(y)))
    return Located(
        shown(evaluation.clip(uid).name),
        shown(uid),
        draft.media.add(f"{anchor} frame {n}", "picture", ANSWERS + n, lambda edge: picture(frame, edge)),
        draft.media.add(f"{anchor} map {n}", "picture", ANSWERS + n, lambda edge: heat(found, edge)),
        drawn,
        (int(x), int(y)),
        score,
        score is not None and score >= SUCCESS,
        bool(rivals),
        width,
        height,
    )


def _boxes(padded: Any) -> list[list[float]]:
    rows = np.asarray(padded, dtype=np.float64).reshape(-1, 4)
    listed: list[list[float]] = np.clip(rows[np.isfinite(rows).all(1)], 0, 1).tolist()
    return listed
