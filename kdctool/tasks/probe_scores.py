"""Scores of one or several probes on the same clips: their mean, how sure it is, and the numbers of single clips."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdctool.seeds import fold
from kdctool.tasks import Metric
from kdctool.tasks.classes import class_means, resamples
from kdctool.tasks.intervals import bootstrap, weighted_mean
from kdctool.tasks.metrics import ClassCurves, Floats, places

_TOLERANCE = 1e-9
"""Scores this close are equal: rounding must not decide between classes."""


@dataclass(frozen=True)
class Judged:
    """A metric as the mean over draws."""

    metric: Metric
    draws: list[float]
    columns: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Judge:
    """What the clips are: truth (N, classes), and their source videos."""

    truth: NDArray[np.bool_]
    sources: list[str]
    several: bool

    @property
    def metric(self) -> str:
        return "map" if self.several else "top1"

    def __call__(self, scores: list[Floats]) -> Judged:
        """Scores (N, classes) of each draw. The interval resamples source videos, and draws where there are several."""
        return self._ranking(scores) if self.several else self._accuracy(scores)

    def _accuracy(self, scores: list[Floats]) -> Judged:
        answer = self.truth.argmax(1)
        hits = np.stack([places(score, answer, _TOLERANCE).within(1) for score in scores], axis=1)  # (N, draws)
        drawing = _Drawing(len(scores))
        low, high = bootstrap(hits, self.sources, lambda values, weights: drawing(weighted_mean(values, weights)))
        mean = hits.mean(1)
        metric = Metric(float(mean.mean()), float(low), float(high), 1 / self.truth.shape[1])
        return Judged(metric, hits.mean(0).tolist(), {"top1": mean})

    def _ranking(self, scores: list[Floats]) -> Judged:
        present = self.truth.any(0)
        hits = self.truth[:, present].astype(np.float64)
        curves = [ClassCurves(score[:, present], hits) for score in scores]

        def means(curves: list[ClassCurves], weights: Floats) -> Floats:
            return np.stack([class_means(curve, weights)[:, 0] for curve in curves], axis=1)  # (R, draws)

        each = means(curves, np.ones((1, len(hits))))[0]
        drawing = _Drawing(len(scores))
        low, high = bootstrap(
            curves,
            self.sources,
            lambda values, weights: drawing(means(values, weights)),
            n=resamples(hits.size * len(scores)),
            centre=each.mean(),
        )
        low, high = np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)
        # A constant score has the share of positives as its average precision.
        metric = Metric(float(each.mean()), float(low), float(high), float(hits.mean()))
        columns = {"scores": scores[0], "targets": self.truth.astype(np.float64)} if len(scores) == 1 else {}
        return Judged(metric, each.tolist(), columns)


class _Drawing:
    """The mean over draws that are themselves drawn again, so the interval knows that they are a sample."""

    def __init__(self, draws: int) -> None:
        self.draws, self.rng = draws, np.random.default_rng(fold(0, "draws"))

    def __call__(self, each: Floats) -> Floats:
        """(R, draws) -> (R,)."""
        if self.draws == 1:
            return each[:, 0]
        picks = self.rng.integers(self.draws, size=each.shape)
        mean: Floats = np.take_along_axis(each, picks, axis=1).mean(1)
        return mean
