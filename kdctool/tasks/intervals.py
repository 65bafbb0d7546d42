"""How far a number would move with other videos: percentile bootstrap over source videos.

Clips of one video resemble each other, so a resample draws videos, not clips, and takes all clips of each.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from kdctool.seeds import fold
from kdctool.tasks.metrics import Floats

V = TypeVar("V")

LEVEL = 0.95
_MOST_CELLS = 4_000_000


def bootstrap(
    values: V,
    clusters: Sequence[str],
    statistic: Callable[[V, Floats], Floats],
    n: int = 2000,
    seed: int = 0,
    centre: Floats | None = None,
) -> tuple[Floats, Floats]:
    """95 % percentile interval (low, high) of `statistic` over `n` resamples of whole clusters.

    `statistic(values, weights)` takes how often each clip was drawn, weights (R, N), and returns (R,) or (R, M);
    the bounds have shape () or (M,). One cluster says nothing about spread: the bounds are NaN. The same seed
    draws the same resamples for every statistic.

    `centre` is the value without resampling, for a statistic that repeated clips bias (average precision: a
    repeated positive raises it). The interval is then moved by the difference of `centre` and the resamples' mean.
    """
    results = resampled(values, clusters, statistic, n, seed)
    return percentiles(results if centre is None else moved(results, centre))


def resampled(
    values: V, clusters: Sequence[str], statistic: Callable[[V, Floats], Floats], n: int = 2000, seed: int = 0
) -> Floats:
    """`statistic` of each of `n` resamples of whole clusters, (n,) or (n, M); all NaN where there is one cluster."""
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    num_clusters = int(member.max()) + 1
    rng = np.random.default_rng(fold(seed, "bootstrap"))
    step = max(1, min(n, _MOST_CELLS // len(member)))
    drawn = []
    for first in range(0, n, step):
        rows = min(step, n - first)
        picks = rng.integers(num_clusters, size=(rows, num_clusters))
        flat = (picks + np.arange(rows)[:, None] * num_clusters).ravel()
        counts = np.bincount(flat, minlength=rows * num_clusters).reshape(rows, num_clusters)
        drawn.append(np.asarray(statistic(values, counts[:, member].astype(np.float64))))
    results = np.concatenate(drawn)  # (n,) or (n, M)
    return results if num_clusters > 1 else np.full_like(results, np.nan)


def moved(results: Floats, centre: Floats) -> Floats:
    """`results` (n,) or (n, M) moved as a whole so that their mean is `centre`; NaN results stay NaN."""
    known = ~np.isnan(results)
    mean = np.where(known, results, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return results + (centre - mean)


def percentiles(results: Floats) -> tuple[Floats, Floats]:
    """The two ends of the central 95 % along axis 0; NaN results (nothing to score in a resample) are left out."""
    flat = results.reshape(len(results), -1)
    ends = np.full((2, flat.shape[1]), np.nan)
    for column in range(flat.shape[1]):
        known = flat[~np.isnan(flat[:, column]), column]
        if len(known):
            ends[:, column] = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = ends.reshape(2, *results.shape[1:])
    return low, high


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """values (N,) or (N, M), weights (R, N) -> (R,) or (R, M)."""
    total = weights.sum(1)
    return (weights @ values) / (total if values.ndim == 1 else total[:, None])


def known_mean(values: Floats, weights: Floats) -> Floats:
    """Mean over the entries that are not NaN: values (N,), weights (R, N) -> (R,); NaN where none was drawn."""
    known = ~np.isnan(values)
    total = weights @ known.astype(np.float64)
    drawn = weights @ np.where(known, values, 0.0)
    return np.divide(drawn, total, out=np.full(len(weights), np.nan), where=total > 0)


def weighted_median(values: Floats, weights: Floats) -> Floats:
    """values (N,), whole-number weights (R, N) -> (R,): the median of the values repeated by weight."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)  # (R, N)
    total = reached[:, -1]
    lower = (reached > np.floor((total - 1) / 2)[:, None]).argmax(1)
    upper = (reached > np.floor(total / 2)[:, None]).argmax(1)
    return (values[order][lower] + values[order][upper]) / 2.0
