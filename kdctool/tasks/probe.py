"""How much do frozen features tell with little learning on top: linear probe, k nearest neighbours, few labels.

Protocol `probe/FEATURES-frame-mid@1` (or `-frames-all`: mean over the clip's frames), FEATURES one of audio and video
(retrieval path: joint block with the modality's norms, mean over tokens), joint (the joint block on both) and concat
(audio and video beside each other).
Linear: logistic regression on features standardised over the whole training split (that needs no labels), decay
chosen on a fifth of the labelled source videos. `k10`, `share0.01`: that many labels, mean over label draws.
knn5, knn20: cosine, votes weighted by exp(cosine / 0.07) as DINO does, all training labels.
One label per clip: top-1. Several: mAP. Test clips of a class that no training clip has are left out and counted.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt

from kdctool.errors import DataFault, UsageFault
from kdctool.registry import Section
from kdctool.tasks import EvalData, Metric, PerClip, Result, tasks
from kdctool.tasks.embeddings import Embedded, Features, embed
from kdctool.tasks.label_draws import Budget, budgets
from kdctool.tasks.linear import Standard, fit_chosen
from kdctool.tasks.metrics import finite
from kdctool.tasks.neighbours import TEMPERATURE, votes
from kdctool.tasks.probe_scores import Judge, Judged
from kdctool.tasks.scoring import check_frames, clusters

NEIGHBOURS = (5, 20)


class ProbeOptions(Section):
    present: Literal["audio", "video", "both"] = "both"
    """Whose features are probed."""
    both: Literal["joint", "concat"] = "joint"
    """Where both are: the joint block's mean token, or the two retrieval embeddings beside each other."""
    frames: Literal["mid", "all"] = "mid"
    """mid: frame N // 2. all: mean of the embeddings of all frames."""
    labels: str | float = "k10,all"
    """Label budgets of the linear probe, for example k1,k5,k10,all or 0.01,0.1,1.0: a curve."""
    draws: PositiveInt = 20
    """Label draws that a budget below all is averaged over."""


@dataclass
class _Found:
    metrics: dict[str, Metric] = field(default_factory=dict)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, judge: Judge, judged: Judged) -> None:
        name = f"{name}_{judge.metric}"
        self.metrics[name] = judged.metric
        self.columns |= {
            name if column == judge.metric else f"{name}.{column}": v for column, v in judged.columns.items()
        }


@tasks.register("probe", ProbeOptions)
class Probe:
    """Linear probe, nearest neighbours and few-label curve on an encoder's pooled features."""

    wants: Literal["encoder", "classifier", "objective"] = "encoder"

    def __init__(self, options: ProbeOptions | None = None) -> None:
        self.options = options or ProbeOptions()
        self.frames: Literal["mid", "all"] = self.options.frames
        self.budgets = budgets(str(self.options.labels))
        self.features: Features = self.options.both if self.options.present == "both" else self.options.present
        if self.features == "audio" and self.frames == "all":
            raise UsageFault("option frames = all changes nothing for sound alone", "leave it out")
        shown = {"mid": "-frame-mid", "all": "-frames-all"}[self.frames] if self.features != "audio" else ""
        heard = ("audio", "video") if self.options.present == "both" else (self.options.present,)
        self.needs: tuple[str, ...] = (*heard, "label", "train")
        self.protocol = f"probe/{self.features}{shown}@1"

    def run(self, model: Any, data: EvalData) -> Result:
        """`model` offers embed_audio, embed_video and, for joint features, forward(fbank, frame, single=False)."""
        if data.train is None:
            raise DataFault("a probe learns on training clips, and there are none", "kdctool shard with a train split")
        every = self.frames == "all"
        if every:
            check_frames(data)
        train = _by_uid(embed(model, data.train, self.features, every), data.train)
        test = embed(model, data, self.features, every)
        found = _Found()
        train, test, missing, several, classes = _fitting(train, test, data, found)
        uids = tuple(data.uids[int(i)] for i in test.clip)
        sources = clusters(data, test.clip)
        names = [data.labels[i] if i < len(data.labels) else f"class {i}" for i in classes]
        judge = Judge(test.target.numpy() > 0, sources, several)
        self._linear(train, test, data.train, several, judge, found)
        for k in NEIGHBOURS:
            answer = votes(test.unit, train.unit, train.target, k)
            found.add(f"knn{k}", judge, judge([finite(answer.cpu().numpy(), "votes")]))
        hits = train.target.numpy() > 0
        found.details |= {
            "features": self.features,
            "dimensions": train.raw.shape[1],
            "labels": names,
            "train_clips": len(hits),
            "train_sources": len(set(clusters(data.train, train.clip))),
            "knn": {"k": list(NEIGHBOURS), "temperature": TEMPERATURE},
            "majority": judge([np.tile(hits.mean(0), (len(uids), 1))]).metric.value,
        }
        told = PerClip(uids, tuple(sources), found.columns)
        return Result(
            "probe",
            self.protocol,
            found.metrics,
            len(uids),
            data.n_total,
            missing,
            tuple(found.notes),
            found.details,
            told,
        )

    def _linear(
        self, train: Embedded, test: Embedded, learned: EvalData, several: bool, judge: Judge, found: _Found
    ) -> None:
        standard = Standard.of(train.raw)
        x, queries = standard(train.raw), standard(test.raw)
        sources = np.asarray(clusters(learned, train.clip))
        uids = [learned.uids[int(i)] for i in train.clip]
        hits = train.target.numpy() > 0
        curve = []
        for budget in self.budgets:
            scores, decays, sizes, stuck = [], [], [], 0
            for draw in range(1 if budget.is_all else self.options.draws):
                rows = budget.draw(hits, uids, draw)
                place = torch.from_numpy(rows)
                shown = x[place.to(x.device)]
                model, decay = fit_chosen(shown, train.target[place], list(sources[rows]), several)
                scores.append(finite(model(queries).cpu().numpy(), "logits of the linear probe"))
                decays.append(decay)
                sizes.append(len(rows))
                stuck += not model.converged
            name = "linear" if budget.is_all else f"linear_{budget.name}"
            judged = judge(scores)
            found.add(name, judge, judged)
            found.notes += _said(budget, hits, stuck, len(scores))
            curve.append(_point(budget, judged, sizes, decays))
        found.details["curve"] = curve


def _by_uid(embedded: Embedded, data: EvalData) -> Embedded:
    """In the order of the uids, so the order in which shards hold clips changes not even a rounding."""
    order = torch.tensor(sorted(range(len(embedded.clip)), key=lambda row: data.uids[int(embedded.clip[row])]))
    return embedded.only(order)


def _fitting(
    train: Embedded, test: Embedded, data: EvalData, found: _Found
) -> tuple[Embedded, Embedded, dict[str, int], bool, list[int]]:
    """Clips and classes that can be learned and scored, with what is left out counted."""
    assert data.train is not None
    labelled = train.target.any(1)
    if not labelled.any():
        raise DataFault(f"none of {len(labelled)} training clips has a label", "give kdctool shard a labels.csv")
    if left := int((~labelled).sum()):
        found.notes.append(f"{left} of {len(labelled)} training clips have no label and are not learned from")
    train = train.only(labelled)
    several = data.multi_label or bool((train.target.sum(1) > 1).any() or (test.target.sum(1) > 1).any())
    known = train.target.any(0)
    if int(known.sum()) < 2 and not several:
        raise DataFault("all labelled training clips have the same label: there is nothing to tell apart")
    missing = dict(data.missing)
    was, has = test.target.any(1), test.target[:, known].any(1)
    for reason, count in (("no_label", (~was).sum()), ("class_without_training_clip", (was & ~has).sum())):
        if int(count):
            missing[reason] = missing.get(reason, 0) + int(count)
    if not has.any():
        raise DataFault(f"none of {len(has)} clips has a label that a training clip has", "is it the right --split?")
    absent = (test.target.any(0) & ~known).nonzero().flatten().tolist()
    if absent:
        names = [data.labels[i] if i < len(data.labels) else f"class {i}" for i in absent[:5]]
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        found.notes.append(f"{len(absent)} classes without a training clip left out: {', '.join(names)}{more}")
    test, classes = test.only(has), known.nonzero().flatten().tolist()
    train, test = (replace(part, target=part.target[:, known]) for part in (train, test))
    return train, test, missing, several, classes


def _said(budget: Budget, hits: NDArray[np.bool_], stuck: int, draws: int) -> list[str]:
    notes = []
    short = int((hits.sum(0) < budget.per_class).sum())
    if short:
        notes.append(f"{budget.name}: {short} of {hits.shape[1]} classes have fewer training clips and give all")
    if stuck:
        notes.append(f"{budget.name}: {stuck} of {draws} linear fits stopped before their optimum")
    return notes


def _point(budget: Budget, judged: Judged, sizes: list[int], decays: list[float]) -> dict[str, Any]:
    values = judged.draws
    return {
        "labels": budget.name,
        "train_clips": float(np.mean(sizes)),
        "value": judged.metric.value,
        "low": judged.metric.low,
        "high": judged.metric.high,
        "draws": values,
        "std_over_draws": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "decay": decays,
    }
