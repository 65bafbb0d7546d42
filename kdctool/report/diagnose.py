"""Head distances, mutual information and entropy of attention: x is the layer, a dot is a head."""

from typing import Any

import numpy as np
from markupsafe import Markup

from kdctool.report.draft import Draft, Part
from kdctool.report.figures import Dots, dots
from kdctool.report.inputs import Evaluation
from kdctool.report.matrices import likeness
from kdctool.report.names import shown, title
from kdctool.report.tables import Cell, Table, free, known, said

MEASURES = {
    "ahd": ("Average head distance", "how far a head looks on average"),
    "time": ("Head distance in time", "how far a head looks along the spectrogram"),
    "frequency": ("Head distance in frequency", "how far a head looks up and down the spectrogram"),
    "nmi": ("Mutual information (NMI)", "0: attention is the same for every query; 1: it tells them apart"),
    "entropy": ("Attention entropy", "low: few tokens are looked at; 1: all alike"),
    "effective_rank": ("Effective rank of the tokens", "how many directions the tokens of a clip take"),
}
TONES = ("audio", "video", "joint")
LARGEST_MATRIX = 40


def part(evaluation: Evaluation, draft: Draft, anchor: str) -> Part | None:
    """A chart per tower and measure, every number of every layer as a table, and the likeness of layers."""
    found = evaluation.found
    towers = dict(found["towers"]) if isinstance(found.get("towers"), dict) else {}
    if isinstance(found.get("joint"), list):
        towers.setdefault("joint", found["joint"])
    if not towers:
        return None
    order = sorted(towers, key=lambda name: (TONES.index(name) if name in TONES else len(TONES), name))
    drawn = [_tower(name, towers[name], found, draft, anchor) for name in order]
    return Part("diagnose.html", {"towers": drawn, "cka": _cka(found.get("cka"), draft, anchor)})


def _tower(
    tower: str, layers: list[dict[str, Any]], found: dict[str, Any], draft: Draft, anchor: str
) -> dict[str, Any]:
    there = [key.removesuffix("_heads").removesuffix("_mean") for layer in layers for key in layer]
    names = [name for name in dict.fromkeys([*MEASURES, *there]) if any(_values(layer, name) for layer in layers)]
    tone = tower if tower in TONES else "plain"
    charts = [chart for name in names if (chart := _chart(name, tower, layers, tone, found))]
    return {"name": shown(tower), "charts": charts, "table": _table(tower, layers, draft, anchor)}


def _values(layer: dict[str, Any], name: str) -> tuple[list[float], float] | None:
    """Heads and mean of a measure; a number without heads is its own mean."""
    heads = [v for v in map(known, layer.get(f"{name}_heads") or []) if v is not None]
    mean = known(layer.get(f"{name}_mean"))
    if mean is None and heads:
        mean = float(np.mean(heads))
    if mean is None and name in MEASURES:
        mean = known(layer.get(name))
    return None if mean is None else (heads, mean)


def _chart(name: str, tower: str, layers: list[dict[str, Any]], tone: str, found: dict[str, Any]) -> dict[str, Any]:
    told = [(float(layer["layer"]), *values) for layer in layers if (values := _values(layer, name))]
    x, heads, means = [row[0] for row in told], [row[1] for row in told], [row[2] for row in told]
    even = ((found.get("uniform") or {}).get(tower) or {}).get(name)
    reference = known((found.get(f"uniform_{name}") or {}).get(tower, even))
    heading, meaning = MEASURES.get(name, (title(name), ""))
    unit = ((found.get("units") or {}).get(tower) or {}).get(name, "")
    drawing: Markup = dots(f"{heading}, tower {shown(tower)}", Dots(x, heads, means, tone, reference))
    return {
        "title": heading + (f", {shown(unit)}" if unit else ""),
        "meaning": meaning,
        "drawing": drawing,
        "has_reference": reference is not None,
    }


def _cka(cka: Any, draft: Draft, anchor: str) -> dict[str, Any] | None:
    """Likeness of layers, as a drawing and as a table."""
    if not isinstance(cka, dict) or not cka.get("matrix"):
        return None
    names = [shown(name) for name in cka["layers"]]
    values = [[known(value) for value in row] for row in cka["matrix"]]
    if all(value is None for row in values for value in row):
        return None
    rows = [[said(name), *map(free, row)] for name, row in zip(names, values, strict=True)]
    table = draft.table(f"{anchor}-cka", "CKA between layers", ("layer", *names), rows)
    text = f"CKA between {len(names)} layers, 1: the same up to a rotation"
    return {"table": table, "drawing": likeness(names, values, text) if len(names) <= LARGEST_MATRIX else Markup()}


def _table(tower: str, layers: list[dict[str, Any]], draft: Draft, anchor: str) -> Table:
    keys = [key for key in dict.fromkeys(key for layer in layers for key in layer) if key != "layer"]
    lists = {key: max(len(layer.get(key) or []) for layer in layers) for key in keys if _is_list(layers, key)}
    single = [key for key in keys if key not in lists and not any(isinstance(layer.get(key), dict) for layer in layers)]
    columns = [
        "layer",
        *map(shown, single),
        *(f"{shown(key)} {n + 1}" for key, width in lists.items() for n in range(width)),
    ]

    def cells(layer: dict[str, Any]) -> list[Cell]:
        values = [layer.get(key) for key in single]
        for key, width in lists.items():
            held = list(layer.get(key) or [])
            values += held + [None] * (width - len(held))
        return [free(layer["layer"]), *(said(v) if isinstance(v, str) else free(v) for v in values)]

    caption = f"Every layer and head of tower {shown(tower)}"
    return draft.table(f"{anchor}-{len(draft.tables)}", caption, columns, [cells(layer) for layer in layers])


def _is_list(layers: list[dict[str, Any]], key: str) -> bool:
    return any(isinstance(layer.get(key), list) for layer in layers)
