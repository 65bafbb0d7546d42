"""The definitions of every score: ranks with ties, recall, average precision, AUC, d', top-k. NumPy, float64.

All of them treat equal scores as equal: nothing is decided by the order in which clips or classes are stored,
so a constant model scores exactly chance. A score that is not finite stops the evaluation (exit 5).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdctool.errors import VerificationFault

Floats = NDArray[np.float64]
Ties = Literal["mid", "best", "worst"]

_MOST_CELLS = 4_000_000
"""Largest (resamples x clips) block that is held at once: 32 MB in float64."""


def finite(values: Any, what: str) -> Floats:
    """`values` as float64; VerificationFault where one is NaN or infinite."""
    array = np.asarray(values, dtype=np.float64)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise VerificationFault(
            f"{bad} of {array.size} {what} are NaN or infinite: a score of them would mean nothing",
            "look at the loss in the run's metrics.jsonl; an earlier checkpoint may be sound",
        )
    return array


@dataclass(frozen=True)
class Places:
    """Where each query's target stands among its candidates: how many beat it, how many others equal it."""

    greater: NDArray[np.int64]
    """(Q,) candidates strictly above the target."""
    equal: NDArray[np.int64]
    """(Q,) other candidates with exactly the target's score."""

    def rank(self, ties: Ties = "mid") -> Floats:
        """(Q,) rank of the target, 1 = best: the middle of its tie group, or that group's best or worst place."""
        share = {"mid": 0.5, "best": 0.0, "worst": 1.0}[ties]
        return 1.0 + self.greater + share * self.equal

    def within(self, k: int) -> Floats:
        """(Q,) probability that a random order among equals puts the target into the first k places.

        0 or 1 without ties. With `greater` g and `equal` e it is clip((k - g) / (e + 1), 0, 1), so a constant
        model has k / candidates for every query.
        """
        return np.clip((k - self.greater) / (self.equal + 1.0), 0.0, 1.0)


def places(
    scores: ArrayLike, target: ArrayLike, tolerance: float = 0.0, excluded: NDArray[np.bool_] | None = None
) -> Places:
    """Places of column `target[i]` in row i of `scores` (Q, C); what lies within `tolerance` of it is its equal.

    Where `excluded` (Q, C) is true, the column is no candidate of the row; the target itself must not be excluded.
    """
    array = finite(scores, "scores")
    column = np.asarray(target, dtype=np.int64)
    if array.ndim != 2 or column.shape != array.shape[:1]:
        raise ValueError(f"scores {array.shape} and targets {column.shape} are not (Q, C) and (Q,)")
    mine = np.take_along_axis(array, column[:, None], axis=1)  # (Q, 1)
    above, not_below = array > mine + tolerance, array >= mine - tolerance
    if excluded is not None:
        above, not_below = above & ~excluded, not_below & ~excluded
    greater, not_less = np.count_nonzero(above, axis=1), np.count_nonzero(not_below, axis=1)
    return Places(greater, not_less - greater - 1)


def ranks(similarity: ArrayLike, ties: Ties = "mid") -> Floats:
    """(Q,) rank of the diagonal of a (Q, C) similarity matrix in its row, 1 = best; C >= Q.

    `mid` is 1 + #(greater) + #(other equals) / 2 and may be half-integer; `best` and `worst` bound it.
    """
    array = np.asarray(similarity)
    return places(array, np.arange(len(array))).rank(ties)


def recall_at(similarity: ArrayLike, k: int) -> float:
    """Share of queries whose diagonal is among the first k; a tie group that straddles place k counts by its share."""
    array = np.asarray(similarity)
    return float(places(array, np.arange(len(array))).within(k).mean())


def top_k(scores: ArrayLike, truth: ArrayLike, k: int, ties: Literal["mid", "first"] = "mid") -> Floats:
    """(N,) whether class `truth[i]` is among the k best of `scores` (N, classes).

    `mid` splits ties as `Places.within` does; `first` gives them to the lower class index, as argmax does.
    """
    found = places(scores, truth)
    if ties == "mid":
        return found.within(k)
    array, column = np.asarray(scores), np.asarray(truth)
    mine = np.take_along_axis(array, column[:, None], axis=1)
    earlier = ((array == mine) & (np.arange(array.shape[1]) < column[:, None])).sum(1)
    return (found.greater + earlier < k).astype(np.float64)


@dataclass(frozen=True)
class _Ordered:
    """One class with its clips by falling score. Only tie groups that hold a positive clip matter to its curves."""

    order: NDArray[np.int64]
    """(N,)."""
    positive: NDArray[np.int64]
    """(P,) the positive clips in that order."""
    group: NDArray[np.int64]
    """(G,) place in `positive` where each tie group begins."""
    bounds: NDArray[np.int64]
    """(M,) places in `order` where a sum starts; the first is 0."""
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    """(G,) places in `bounds` (or one past it) where the group begins and ends."""


class ClassCurves:
    """Average precision and ROC AUC of every class, for many weightings of the clips at once.

    Scores are sorted once; a bootstrap resample is a weighting, so it costs sums only.
    """

    def __init__(self, scores: ArrayLike, targets: ArrayLike) -> None:
        """scores and targets (N, classes); a target is 1 where the clip has the class, else 0."""
        array, hits = finite(scores, "class scores"), finite(targets, "targets")
        if array.ndim != 2 or array.shape != hits.shape:
            raise ValueError(f"scores {array.shape} and targets {hits.shape} are not both (clips, classes)")
        if not np.isin(hits, (0.0, 1.0)).all():
            raise ValueError("targets must be 0 or 1")
        self.num_clips, self.num_classes = array.shape
        self._classes = [_ordered(score, hit > 0) for score, hit in zip(array.T, hits.T, strict=True)]

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        """Whole-number weights (R, N) -> average precision (R, classes) and AUC (R, classes).

        NaN where a class has no positive clip (both) or no negative one (AUC).
        """
        precision = np.full((len(weights), self.num_classes), np.nan)
        auc = np.full((len(weights), self.num_classes), np.nan)
        step = max(1, _MOST_CELLS // max(1, self.num_clips))
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            # Clips as rows: reordering then moves whole rows. Counts below 2 ** 24 are exact in float32.
            weight = np.ascontiguousarray(weights[rows].T, dtype=np.float32)
            for column, ordered in enumerate(self._classes):
                if len(ordered.positive):
                    precision[rows, column], auc[rows, column] = _areas(ordered, weight)
        return precision, auc

    def once(self) -> tuple[Floats, Floats]:
        """(classes,) average precision and AUC of the clips as they are."""
        precision, auc = self(np.ones((1, self.num_clips)))
        return precision[0], auc[0]


def _ordered(score: Floats, hit: NDArray[np.bool_]) -> _Ordered:
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))  # First clip of each tie group.
    ends = np.append(starts[1:], len(order))
    places = np.flatnonzero(hit[order])
    groups, group = np.unique(np.searchsorted(starts, places, side="right") - 1, return_index=True)
    bounds = np.unique(np.concatenate([[0], starts[groups], ends[groups]]))
    first, last = np.searchsorted(bounds, starts[groups]), np.searchsorted(bounds, ends[groups])
    return _Ordered(order, order[places], group, bounds[bounds < len(order)], first, last)


def _areas(ordered: _Ordered, weight: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """weight (N, R) -> average precision (R,) and AUC (R,)."""
    parts = np.add.reduceat(weight[ordered.order], ordered.bounds, axis=0)  # (M, R)
    seen = np.cumsum(np.concatenate([np.zeros_like(parts[:1]), parts]), axis=0, dtype=np.float64)
    gained = np.add.reduceat(weight[ordered.positive], ordered.group, axis=0).astype(np.float64)  # (G, R)
    true = np.cumsum(gained, axis=0)
    reached, before = seen[ordered.last], seen[ordered.first]
    positives, negatives = true[-1], seen[-1] - true[-1]
    share = np.divide(true, reached, out=np.zeros_like(true), where=reached > 0)
    beaten = negatives - (reached - true) + (reached - before - gained) / 2.0  # Negatives below, ties half.
    nothing = np.full(len(positives), np.nan)
    precision = np.divide((gained * share).sum(0), positives, out=nothing.copy(), where=positives > 0)
    pairs = positives * negatives
    return precision, np.divide((gained * beaten).sum(0), pairs, out=nothing, where=pairs > 0)


def _per_class(scores: ArrayLike, targets: ArrayLike, which: int) -> Any:
    array, hits = np.asarray(scores), np.asarray(targets)
    if array.ndim == 1:
        return float(ClassCurves(array[:, None], hits[:, None]).once()[which][0])
    return ClassCurves(array, hits).once()[which]


def average_precision(scores: ArrayLike, targets: ArrayLike) -> Any:
    """Sum of precision times gained recall over the distinct scores, as scikit-learn defines it.

    (N,) -> float; (N, classes) -> (classes,). NaN for a class without positives: leave it out of a mean.
    """
    return _per_class(scores, targets, 0)


def auc(scores: ArrayLike, targets: ArrayLike) -> Any:
    """Probability that a positive clip outscores a negative one, ties counting half (area under the ROC curve).

    (N,) -> float; (N, classes) -> (classes,). NaN for a class without positives or without negatives.
    """
    return _per_class(scores, targets, 1)


def d_prime(area: float) -> float:
    """sqrt(2) times the standard normal quantile of an AUC; infinite at 0 and 1, NaN for NaN."""
    if math.isnan(area):
        return math.nan
    if not 0.0 <= area <= 1.0:
        raise ValueError(f"an AUC lies in 0-1, got {area}")
    if area in (0.0, 1.0):
        return math.copysign(math.inf, area - 0.5)
    return math.sqrt(2.0) * NormalDist().inv_cdf(area)


def mean_over_classes(values: Floats) -> Floats:
    """(R, classes) -> (R,) mean over the classes that have a value; NaN where none has."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(1)
    return np.divide(total, known.sum(1), out=np.full(len(values), np.nan), where=known.any(1))
