"""Scores of single clips while batches come by in any order, and the metric that their mean is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdctool.tasks import Metric
from kdctool.tasks.intervals import bootstrap
from kdctool.tasks.metrics import Floats

Columns = dict[str, Floats]
"""Name of a score -> (N,) of each clip; NaN where the clip has none."""


class Scores:
    """Scores by clip."""

    def __init__(self) -> None:
        self._held: dict[int, dict[str, float]] = {}

    def add(self, clips: Sequence[int], scored: Mapping[str, Any]) -> None:
        """scored: name -> (B,) array or tensor."""
        for row, clip in enumerate(clips):
            self._held.setdefault(clip, {}).update({name: float(values[row]) for name, values in scored.items()})

    def columns(self, clips: Iterable[int]) -> Columns:
        """Scores of the clips in this order."""
        rows = [self._held[clip] for clip in clips]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def metrics(columns: Columns, sources: list[str], chance: Mapping[str, float]) -> dict[str, Metric]:
    """Mean of every column over the clips that have the value, with its interval; one draw of resamples for all."""
    values = np.stack(list(columns.values()), axis=1)  # (N, M)
    low, high = bootstrap(values, sources, _known_means)
    return {
        name: Metric(float(np.nanmean(column)), float(low[i]), float(high[i]), chance[name])
        for i, (name, column) in enumerate(columns.items())
    }


def _known_means(values: Floats, weights: Floats) -> Floats:
    """values (N, M), weights (R, N) -> (R, M): weighted means over what is not NaN."""
    known = ~np.isnan(values)
    total = weights @ known.astype(np.float64)
    drawn = weights @ np.where(known, values, 0.0)
    return np.divide(drawn, total, out=np.full(total.shape, np.nan), where=total > 0)
