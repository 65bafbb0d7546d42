"""The plots of a study: every seed and the mean of each arm beside the contrasts, and its curves."""

from pathlib import Path
from typing import Any

from kdctool.progress import say

PLOT, CURVES = "plot", "curves"
FORMATS = ("svg", "png")
WIDTH = 0.36
"""Of the arms' points over one tick of a curve, in ticks."""


def draw(payload: dict[str, Any], out: Path) -> list[Path]:
    """Write plot.svg and plot.png, and the same of curves, from what results.json holds; without matplotlib, say so."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no plot was drawn: matplotlib is not installed (pip install 'kdctool[plots]', then --summary)")
        return []
    endpoint = payload["endpoint"]
    compared = [
        item for item in payload["primary"] + payload["secondary"] if item["endpoint"] == endpoint and item["n"]
    ]
    figure = Figure(figsize=(9, 3.2 + 0.12 * max(len(payload["arms"]), len(compared))), layout="constrained")
    left, right = figure.subplots(1, 2)
    judged = (payload["references"] or {"endpoints": {}})["endpoints"].get(endpoint, {})
    _arms(left, payload["arms"], endpoint, is_informative=judged.get("informative") is not False)
    _contrasts(right, compared)
    paths = _save(figure, out / PLOT)
    if curves := payload["curves"]:
        figure = Figure(figsize=(1.5 + 4.5 * len(curves), 3.6), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, curve in zip(panels, curves, strict=True):
            _curve(axes, curve, payload["arms"])
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        paths += _save(figure, out / CURVES)
    return paths


def _save(figure: Any, stem: Path) -> list[Path]:
    import matplotlib

    paths = []
    # No date and fixed ids: equal results give equal files.
    with matplotlib.rc_context({"svg.hashsalt": "kdctool", "svg.fonttype": "none"}):
        for kind in FORMATS:
            path = stem.with_suffix(f".{kind}")
            figure.savefig(path, dpi=120, metadata={"Date": None} if kind == "svg" else None)
            paths.append(path)
    return paths


def _curve(axes: Any, curve: dict[str, Any], arms: dict[str, Any]) -> None:
    """A line per arm, references dashed; an arm without a value at a point has a hole there."""
    hole = float("nan")
    for place, (name, points) in enumerate(curve["arms"].items()):
        # Side by side, so that intervals do not hide each other.
        shift = WIDTH * (place / max(1, len(curve["arms"]) - 1) - 0.5)
        means = [hole if point["mean"] is None else point["mean"] for point in points]
        reach = [
            [0.0 if point["low"] is None else point["mean"] - point["low"] for point in points],
            [0.0 if point["high"] is None else point["high"] - point["mean"] for point in points],
        ]
        style = "-" if arms[name]["training"] == "pretrain" else "--"
        at = [number + shift for number in range(len(points))]
        axes.errorbar(at, means, yerr=reach, linestyle=style, marker="o", markersize=3, linewidth=1, label=name)
    axes.set_xticks(range(len(curve["points"])), curve["points"], fontsize=8)
    axes.set_xlabel(curve["x"], fontsize=8)
    axes.set_title(f"{curve['name']}: mean, 95 % over seeds", fontsize=9)


def _arms(axes: Any, arms: dict[str, Any], endpoint: str, *, is_informative: bool) -> None:
    for place, arm in enumerate(arms.values()):
        told = arm["endpoints"][endpoint]
        seeds = list(told["seeds"].values())
        axes.plot([place] * len(seeds), seeds, "o", color="0.6", markersize=4)
        if told["mean"] is not None:
            axes.plot([place - 0.25, place + 0.25], [told["mean"]] * 2, "-", color="C0", linewidth=2)
        if told["low"] is not None:
            axes.plot([place, place], [told["low"], told["high"]], "-", color="C0", linewidth=1)
    axes.set_xticks(range(len(arms)), list(arms), rotation=20 if max(map(len, arms)) > 6 else 0)
    axes.set_title(f"{endpoint}: seeds, mean, 95 %" + ("" if is_informative else ", uninformative"), fontsize=9)


def _contrasts(axes: Any, compared: list[dict[str, Any]]) -> None:
    axes.axvline(0, color="0.8", linewidth=1)
    for place, item in enumerate(reversed(compared)):
        axes.plot(item["mean"], place, "o", color="C0")
        if item["low"] is not None:
            axes.plot([item["low"], item["high"]], [place, place], "-", color="C0")
        if item["over_clips"] and item["over_clips"]["low"] is not None:
            clips = item["over_clips"]
            axes.plot([clips["low"], clips["high"]], [place - 0.2] * 2, "-", color="C1", linewidth=1)
    axes.set_yticks(range(len(compared)), [f"{item['a']} - {item['b']}" for item in reversed(compared)])
    axes.set_ylim(-0.6, max(len(compared), 1) - 0.4)
    axes.set_title("difference: 95 % over seeds (blue), over clips (orange)", fontsize=9)
