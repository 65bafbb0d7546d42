"""How two arms of a study differ, over seeds that pair them and, apart, over clips; and what may be said of it.

The two intervals answer different questions. Over seeds: would another initialisation, order and mask give the same
sign? Over clips: would other clips? Neither contains the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdctool.errors import UsageFault
from kdctool.tasks.intervals import bootstrap, weighted_mean
from kdctool.tasks.metrics import Floats

Verdict = Literal["higher", "lower", "no effect", "undecided", "one seed"]
_TINY = 1e-300


@dataclass(frozen=True)
class Contrast:
    """Mean difference a - b over paired seeds. With one seed nothing is known about its spread: NaN."""

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    """95 % t-interval over seeds."""
    low90: float
    high90: float
    p: float
    """Two-sided paired t-test."""

    @property
    def n(self) -> int:
        return len(self.seeds)

    def verdict(self, margin: float, p: float | None = None) -> Verdict:
        """What the data say. `no effect` needs the 90 % interval inside +-margin (two one-sided tests at 5 %).

        `p` replaces the contrast's own, for example after Holm's adjustment.
        """
        if self.n < 2:
            return "one seed"
        if -margin < self.low90 and self.high90 < margin:
            return "no effect"
        if (self.p if p is None else p) < 0.05:
            return "higher" if self.mean > 0 else "lower"
        return "undecided"


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Contrast:
    """Compare two arms on the seeds that both have; UsageFault when there is none."""
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        raise UsageFault("the two arms have no seed in common", "run the cells that are missing")
    differences = np.array([a[seed] - b[seed] for seed in seeds])
    mean, n = float(differences.mean()), len(seeds)
    told = tuple(float(value) for value in differences)
    if n < 2:
        return Contrast(seeds, told, mean, *[math.nan] * 5)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return Contrast(seeds, told, mean, mean, mean, mean, mean, 1.0 if mean == 0 else 0.0)
    wide, narrow = (t_quantile(1 - alpha / 2, n - 1) * error for alpha in (0.05, 0.10))
    p = 2 * (1 - t_cdf(abs(mean) / error, n - 1))
    return Contrast(seeds, told, mean, mean - wide, mean + wide, mean - narrow, mean + narrow, p)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval over seeds; NaN bounds for one value."""
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return mean, math.nan, math.nan
    half = t_quantile(0.975, len(found) - 1) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return mean, mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given. NaN (one seed) stays NaN and is not counted as a test."""
    order = [place for place in np.argsort(p_values, kind="stable") if not math.isnan(p_values[place])]
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def over_clips(differences: Floats, clusters: Sequence[str]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference: differences (N,) of each clip, averaged over seeds before."""
    low, high = bootstrap(differences, clusters, weighted_mean)
    return float(low), float(high)


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; half answers are allowed."""
    z, share = 1.959963984540054, correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends rounding would leave the share itself a hair outside.
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def t_cdf(t: float, df: int) -> float:
    """Student's t distribution function."""
    square = t * t
    if square < df:  # Near the middle the other form keeps its digits.
        return 0.5 + math.copysign(0.5 * _beta_share(0.5, df / 2, square / (df + square)), t)
    tail = 0.5 * _beta_share(df / 2, 0.5, df / (df + square))
    return 1 - tail if t > 0 else tail


def t_quantile(p: float, df: int) -> float:
    """Inverse of `t_cdf`, by bisection."""
    if not 0 < p < 1:
        raise ValueError(f"p = {p} is not between 0 and 1")
    low, high = -1e6, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def _beta_share(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function, by its continued fraction (Lentz; Numerical Recipes 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + numerator * d)
            c = _away(1 + numerator / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value


def _away(value: float) -> float:
    """Keeps a denominator off zero."""
    return value if abs(value) > _TINY else _TINY
