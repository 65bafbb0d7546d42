"""From values to places on a drawing: round ticks, a linear or logarithmic axis, and fewer points of a long curve."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

POINTS, SMOOTH_POINTS = 400, 200
"""Points of a curve that are drawn; more cannot be seen at this width."""


@dataclass(frozen=True)
class Axis:
    """Values low..high drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        place: Callable[[float], float] = math.log10 if self.log else float
        share = (place(value) - place(self.low)) / (place(self.high) - place(self.low))
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, about: int = 4) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high, about)
        decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        return [10.0**decade for decade in decades] if len(decades) >= 2 else [self.low, self.high]


def axis(values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Axis:
    """An axis that holds all values with a little air; `zero` begins a positive one at 0."""
    low, high = min(values), max(values)
    if log:
        return Axis(low / 1.1, high * 1.1, start, end, True)
    if zero and low > 0:
        low = 0.0
    if low == high:
        air = abs(low) * 0.1 or 1.0
        return Axis(low - air, high + air, start, end)
    air = (high - low) * 0.05
    return Axis(low if low == 0 else low - air, high + air, start, end)


def wants_log(values: Sequence[float]) -> bool:
    """Whether a curve falls so far that a linear axis would show a corner: more than 20 times its own median."""
    ordered = sorted(values)
    return ordered[0] > 0 and ordered[-1] > 20 * ordered[len(ordered) // 2]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between low and high, about that many."""
    raw = (high - low) / max(about, 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """1500000 -> '1.5M', 0.00025 -> '2.5e-4'."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1000 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"


def thin(x: Sequence[float], y: Sequence[float], limit: int = POINTS) -> tuple[list[float], list[float]]:
    """The lowest and highest point of every stretch of a long curve, in order: peaks stay, the ends stay."""
    if len(x) <= limit:
        return list(x), list(y)
    kept = {0, len(x) - 1}
    stretches = limit // 2 - 1
    for n in range(stretches):
        part = range(n * len(x) // stretches, (n + 1) * len(x) // stretches)
        kept |= {min(part, key=lambda i: y[i]), max(part, key=lambda i: y[i])}
    places = sorted(kept)
    return [x[i] for i in places], [y[i] for i in places]


def smooth(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Running median over about a twentieth of a curve, then its mean: no lag, and one spike does not bend it."""
    stretches = min(len(y), SMOOTH_POINTS)
    parts = [range(n * len(y) // stretches, (n + 1) * len(y) // stretches) for n in range(stretches)]
    middles = [median(y[i] for i in part) for part in parts]
    reach = max(1, stretches // 40)
    flat = [median(middles[max(0, n - reach) : n + reach + 1]) for n in range(stretches)]
    even = [fmean(flat[max(0, n - reach) : n + reach + 1]) for n in range(stretches)]
    return [x[part[len(part) // 2]] for part in parts], even
