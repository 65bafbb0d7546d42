"""Which labels does a clip have: a finetuned model against the labels of the split.

Protocol `classification/frame-mid@1`: one frame per clip (N // 2), raw logits. With one label per clip: top-1,
top-5, mAP, AUC, d'; with several: mAP, AUC, d'. mAP and AUC are means over the classes that can be scored.
"""

from typing import Any, Literal

import numpy as np
import torch

from kdctool.errors import DataFault, UsageFault
from kdctool.registry import Section
from kdctool.tasks import EvalData, Metric, Result, tasks
from kdctool.tasks.intervals import bootstrap, weighted_mean
from kdctool.tasks.metrics import (
    ClassCurves,
    Floats,
    auc,
    average_precision,
    d_prime,
    finite,
    mean_over_classes,
    top_k,
)
from kdctool.tasks.scoring import clusters, evaluating, read_batches

__all__ = ["Classification", "auc", "average_precision", "d_prime", "top_k"]

_WORK = 2_000_000_000
"""Clips x classes x resamples that the mAP interval may cost: 200 resamples at AudioSet's size."""


@tasks.register("classification")
class Classification:
    """Accuracy and ranking quality of a classifier, for one label per clip or several."""

    protocol = "classification/frame-mid@1"
    needs: tuple[str, ...] = ("audio", "video", "label")
    wants: Literal["encoder", "classifier", "objective"] = "classifier"
    frames: Literal["mid", "all"] = "mid"

    def __init__(self, options: Section | None = None) -> None:
        self.options = options or Section()

    def run(self, model: Any, data: EvalData) -> Result:
        """`model(batch)` gives logits (B, classes); batch["label"] (B, classes) is 1 where the clip has the class."""
        logits, targets, clip = [], [], []
        with evaluating(model):
            for batch in read_batches(data):
                if "label" not in batch:
                    raise DataFault("these shards carry no labels", "give kdctool shard a labels.csv")
                logits.append(model(batch).float().cpu())
                targets.append(batch["label"].cpu())
                clip.append(batch["clip"].cpu())
        if not clip:
            raise DataFault("no clip can be classified: the split has none that could be read", "try another --split")
        scores, truth = finite(torch.cat(logits).numpy(), "logits"), torch.cat(targets).numpy() > 0
        if scores.shape != truth.shape:
            raise UsageFault(
                f"the classifier knows {scores.shape[1]} classes, the labels have {truth.shape[1]}",
                "evaluate on shards with the labels it was finetuned on",
            )
        labelled = truth.any(1)
        missing = dict(data.missing)
        if not labelled.all():
            missing["no_label"] = missing.get("no_label", 0) + int((~labelled).sum())
        if not labelled.any():
            raise DataFault(f"none of {len(truth)} clips has a label", "give kdctool shard a labels.csv")
        scores, truth, kept = scores[labelled], truth[labelled], torch.cat(clip)[torch.from_numpy(labelled)]
        sources = clusters(data, kept)
        metrics: dict[str, Metric] = {}
        if not (data.multi_label or (truth.sum(1) > 1).any()):
            metrics.update(_accuracy(scores, truth, sources))
        ranking, notes = _ranking(scores, truth, sources, data.labels)
        metrics.update(ranking)
        return Result("classification", self.protocol, metrics, len(sources), data.n_total, missing, notes)


def _accuracy(scores: Floats, truth: Any, sources: list[str]) -> dict[str, Metric]:
    classes = scores.shape[1]
    metrics = {}
    for k in (1, 5):
        if k > 1 and classes <= k:
            continue  # Every answer would be right.
        hits = top_k(scores, truth.argmax(1), k)
        low, high = bootstrap(hits, sources, weighted_mean)
        metrics[f"top{k}"] = Metric(float(hits.mean()), float(low), float(high), min(k, classes) / classes)
    return metrics


def _ranking(
    scores: Floats, truth: Any, sources: list[str], labels: tuple[str, ...]
) -> tuple[dict[str, Metric], tuple[str, ...]]:
    present = truth.any(0)
    scored, hits = scores[:, present], truth[:, present].astype(np.float64)
    curves = ClassCurves(scored, hits)

    def means(curves: ClassCurves, weights: Floats) -> Floats:
        precision, area = curves(weights)
        return np.stack([mean_over_classes(precision), mean_over_classes(area)], axis=1)  # (R, 2)

    value = means(curves, np.ones((1, len(scores))))[0]
    resamples = int(np.clip(_WORK // scored.size, 200, 2000))
    low, high = bootstrap(curves, sources, means, n=resamples, centre=value)
    low, high = np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)
    # A constant score has the share of positives as its average precision.
    metrics = {"map": Metric(float(value[0]), float(low[0]), float(high[0]), float(hits.mean(0).mean()))}
    if not np.isnan(value[1]):
        metrics["auc"] = Metric(float(value[1]), float(low[1]), float(high[1]), 0.5)
        # d' rises with the AUC, so it carries the AUC's interval over.
        at, down, up = (d_prime(float(area)) for area in (value[1], low[1], high[1]))
        metrics["d_prime"] = Metric(at, down, up, 0.0)
    return metrics, _notes(present, hits, labels)


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
