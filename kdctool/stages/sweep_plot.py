"""The plot of a study: every seed and the mean of each arm; beside it the contrasts with their intervals."""

from pathlib import Path
from typing import Any

from kdctool.progress import say

PLOT = "plot"
FORMATS = ("svg", "png")


def draw(payload: dict[str, Any], out: Path) -> list[Path]:
    """Write plot.svg and plot.png from what results.json holds; nothing, and says so, without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        say("no plot was drawn: matplotlib is not installed (pip install 'kdctool[plots]', then --summary)")
        return []
    from matplotlib.figure import Figure

    endpoint = payload["endpoint"]
    compared = [
        item for item in payload["primary"] + payload["secondary"] if item["endpoint"] == endpoint and item["n"]
    ]
    figure = Figure(figsize=(9, 3.2 + 0.12 * max(len(payload["arms"]), len(compared))), layout="constrained")
    left, right = figure.subplots(1, 2)
    _arms(left, payload["arms"], endpoint)
    _contrasts(right, compared)
    paths = []
    # No date and fixed ids: equal results give equal files.
    with matplotlib.rc_context({"svg.hashsalt": "kdctool", "svg.fonttype": "none"}):
        for kind in FORMATS:
            path = out / f"{PLOT}.{kind}"
            figure.savefig(path, dpi=120, metadata={"Date": None} if kind == "svg" else None)
            paths.append(path)
    return paths


def _arms(axes: Any, arms: dict[str, Any], endpoint: str) -> None:
    for place, arm in enumerate(arms.values()):
        told = arm["endpoints"][endpoint]
        seeds = list(told["seeds"].values())
        axes.plot([place] * len(seeds), seeds, "o", color="0.6", markersize=4)
        if told["mean"] is not None:
            axes.plot([place - 0.25, place + 0.25], [told["mean"]] * 2, "-", color="C0", linewidth=2)
        if told["low"] is not None:
            axes.plot([place, place], [told["low"], told["high"]], "-", color="C0", linewidth=1)
    axes.set_xticks(range(len(arms)), list(arms), rotation=20 if max(map(len, arms)) > 6 else 0)
    axes.set_title(f"{endpoint}: seeds, mean, 95 %", fontsize=9)


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
