"""Scores (N, classes) against the classes the clips have: accuracy, ranking quality, per class, confusion."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdctool.tasks import Metric
from kdctool.tasks.intervals import bootstrap, weighted_mean
from kdctool.tasks.metrics import ClassCurves, Floats, d_prime, mean_over_classes, top_k

WORK = 2_000_000_000
"""Clips x classes x resamples that the mAP interval may cost: 200 resamples at AudioSet's size."""
MOST_CLASSES = 400
"""A confusion matrix of more classes is not kept."""


@dataclass(frozen=True)
class Scored:
    """Metrics of one set of scores, with what a reader and a comparison need beside them."""

    metrics: dict[str, Metric]
    notes: tuple[str, ...]
    details: dict[str, Any]
    columns: dict[str, Any]


def accuracy(
    scores: Floats, truth: Any, sources: list[str], metrics: dict[str, Metric], columns: dict[str, Any]
) -> None:
    """Add top-1 and top-5 of clips that have one class each, and their hits clip by clip."""
    classes = scores.shape[1]
    for k in (1, 5):
        if k > 1 and classes <= k:
            continue  # Every answer would be right.
        hits = top_k(scores, truth.argmax(1), k)
        low, high = bootstrap(hits, sources, weighted_mean)
        metrics[f"top{k}"] = Metric(float(hits.mean()), float(low), float(high), min(k, classes) / classes)
        columns[f"top{k}"] = hits


def ranking(
    scores: Floats, truth: Any, sources: list[str], labels: tuple[str, ...], share: int = 1
) -> tuple[dict[str, Metric], tuple[str, ...], tuple[Floats, Floats]]:
    """mAP, AUC and d' over the classes that can be scored; notes; average precision and AUC (classes,) with NaN.

    `share`: how many rankings split the work that intervals may cost.
    """
    present = truth.any(0)
    scored, hits = scores[:, present], truth[:, present].astype(np.float64)
    curves = ClassCurves(scored, hits)
    precision, area = curves.once()
    value = class_means(curves, np.ones((1, len(scores))))[0]
    low, high = bootstrap(curves, sources, class_means, n=resamples(scored.size * share), centre=value)
    low, high = np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)
    # A constant score has the share of positives as its average precision.
    metrics = {"map": Metric(float(value[0]), float(low[0]), float(high[0]), float(hits.mean(0).mean()))}
    if not np.isnan(value[1]):
        metrics["auc"] = Metric(float(value[1]), float(low[1]), float(high[1]), 0.5)
        # d' rises with the AUC, so it carries the AUC's interval over.
        at, down, up = (d_prime(float(one)) for one in (value[1], low[1], high[1]))
        metrics["d_prime"] = Metric(at, down, up, 0.0)
    every = np.full((2, len(present)), np.nan)
    every[:, present] = precision, area
    return metrics, _notes(present, hits, labels), (every[0], every[1])


def class_means(curves: ClassCurves, weights: Floats) -> Floats:
    """(R, N) weights -> (R, 2): mAP and mean AUC of each weighting."""
    precision, area = curves(weights)
    return np.stack([mean_over_classes(precision), mean_over_classes(area)], axis=1)


def resamples(cells: int) -> int:
    """How many resamples scores of that many cells (clips x classes) get: 200 to 2000."""
    return int(np.clip(WORK // max(cells, 1), 200, 2000))


def details(
    scores: Floats, truth: Any, areas: tuple[Floats, Floats], single: bool, labels: tuple[str, ...]
) -> dict[str, Any]:
    """The class names, numbers of each class, and with one class per clip the confusion of truth and first answer."""
    names = [labels[i] if i < len(labels) else f"class {i}" for i in range(scores.shape[1])]
    answer = scores.argmax(1)
    recall = [float((answer[row] == place).mean()) if row.any() else None for place, row in enumerate(truth.T)]
    rows = [
        {
            "label": name,
            "positives": int(truth[:, place].sum()),
            "ap": _known(areas[0][place]),
            "auc": _known(areas[1][place]),
            "recall": recall[place] if single else None,
        }
        for place, name in enumerate(names)
    ]
    found: dict[str, Any] = {"labels": names, "per_class": rows}
    if single and len(names) <= MOST_CLASSES:
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(counts, (truth.argmax(1), answer), 1)
        found["confusion"] = {"labels": names, "counts": counts.tolist()}
    return found


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _notes(present: Any, hits: Floats, labels: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    absent = np.flatnonzero(~present)
    if len(absent):
        names = [labels[i] if i < len(labels) else f"class {i}" for i in absent[:5]]
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        notes.append(
            f"mAP and AUC over {int(present.sum())} of {len(present)} classes; "
            f"{len(absent)} without a positive clip left out: {', '.join(names)}{more}"
        )
    full = int((hits.min(0) == 1).sum())
    if full:
        notes.append(f"AUC leaves out {full} class{'es' if full > 1 else ''} that every clip has")
    return tuple(notes)
