"""Drawings as inline SVG: curves, dots per head, interval bars, boxes. Colours are classes of report.css."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from kdctool.report.scales import Axis, axis, smooth, thin, tick_text, wants_log

WIDTH, HEIGHT = 360, 214
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 32
SMOOTHED = 80
"""From this many points on a curve gets a smooth line over its raw one."""
TONES = ("plain", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Series:
    """One curve: x and y (points,) finite, and the tone it is drawn in (audio, video, joint or one of TONES)."""

    name: str
    x: list[float]
    y: list[float]
    tone: str


@dataclass(frozen=True)
class Dots:
    """Values per head over layers: heads[i] are the heads of layer x[i]; `means` joins them by a line."""

    x: list[float]
    heads: list[list[float]]
    means: list[float]
    tone: str
    reference: float | None = None
    """A dashed line: what attention to everything alike would have."""


def tone_of(name: str, place: int) -> str:
    """Sound, picture and joint have their own colours everywhere; other curves take theirs by their place."""
    for part in ("audio", "video", "joint"):
        if name == part or name.endswith((f"_{part}", f"/{part}")):
            return part
    return TONES[place % len(TONES)]


def curve(title: str, series: Sequence[Series], x_label: str = "step") -> Markup:
    """Curves over steps. A logarithmic y axis, named as such, where a linear one would show nothing."""
    values = [value for one in series for value in one.y]
    log = wants_log(values)
    ys = axis(values, HEIGHT - BOTTOM, TOP, log=log)
    xs = _span([at for one in series for at in one.x])
    parts = [_frame(xs, ys, x_label, "log" if log else "")]
    for one in series:
        x, y = thin(one.x, one.y)
        if len(one.y) >= SMOOTHED:
            parts.append(_line(xs, ys, x, y, f"line raw t-{one.tone}"))
            x, y = smooth(one.x, one.y)
        parts.append(_line(xs, ys, x, y, f"line t-{one.tone}"))
        if len(one.x) <= 40:
            parts += [_dot(xs(a), ys(b), 2.4, one.tone) for a, b in zip(x, y, strict=True)]
    ends = "; ".join(f"{one.name} from {one.y[0]:.4g} to {one.y[-1]:.4g}" for one in series)
    return _svg(f"{title}: {ends}", parts)


def dots(title: str, drawn: Dots, x_label: str = "layer") -> Markup:
    """One dot per head over its layer, a line through the means."""
    values = [v for heads in drawn.heads for v in heads] + drawn.means
    values += [] if drawn.reference is None else [drawn.reference]
    ys = axis(values, HEIGHT - BOTTOM, TOP, zero=True)
    first, last = min(drawn.x), max(drawn.x)
    xs = Axis(first - 0.5, last + 0.5, LEFT, WIDTH - RIGHT)
    every = max(1, -(-len(drawn.x) // 12))
    parts = [_frame(xs, ys, x_label, "", [at for at in drawn.x if (at - first) % every == 0])]
    if drawn.reference is not None:
        y = ys(drawn.reference)
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    parts.append(_line(xs, ys, drawn.x, drawn.means, f"line t-{drawn.tone}"))
    for at, heads in zip(drawn.x, drawn.heads, strict=True):
        parts += [_dot(xs(at), ys(value), 3.2, f"{drawn.tone} head") for value in heads]
    arm = min(8.0, 0.3 * (WIDTH - LEFT - RIGHT) / len(drawn.x))
    for at, mean in zip(drawn.x, drawn.means, strict=True):
        y = ys(mean)
        parts.append(
            f'<line class="line t-{drawn.tone}" x1="{xs(at) - arm:g}" x2="{xs(at) + arm:g}" y1="{y}" y2="{y}"/>'
        )
    return _svg(f"{title}, a dot per head, layers {first:g} to {last:g}", parts)


def spark(values: Sequence[float]) -> Markup:
    """A curve without axes, for a card."""
    _, y = thin(range(len(values)), values, 120)
    xs = Axis(0, max(len(y) - 1, 1), 2, 158)
    log = wants_log(y)
    ys = axis(y, 38, 3, log=log)
    return Markup('<svg class="spark" viewBox="0 0 160 42" aria-hidden="true">{}</svg>').format(
        Markup(_line(xs, ys, list(range(len(y))), list(y), "line t-plain"))
    )


def interval(value: float | None, low: float | None, high: float | None, chance: float | None) -> Markup:
    """A score as a dot on its interval, with a tick where guessing stands; from 0 to 1 where all of these lie there.

    Nothing where the score or chance is not known.
    """
    if value is None or chance is None:
        return Markup()
    told = [v for v in (value, low, high, chance) if v is not None]
    place = Axis(0, 1, 5, 115) if all(0 <= v <= 1 for v in told) else axis(told, 5, 115)
    parts = ['<line class="track" x1="5" x2="115" y1="9" y2="9"/>']
    parts.append(f'<line class="chance" x1="{place(chance)}" x2="{place(chance)}" y1="2" y2="16"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="spread" x1="{place(low)}" x2="{place(high)}" y1="9" y2="9"/>')
    parts.append(f'<circle class="value" cx="{place(value)}" cy="9" r="4"/>')
    return Markup('<svg class="interval" viewBox="0 0 120 18" aria-hidden="true">{}</svg>').format(
        Markup("".join(parts))
    )


def boxes(
    width: int, height: int, groups: Sequence[tuple[str, Sequence[Sequence[float]]]], peak: tuple[int, int]
) -> Markup:
    """Boxes (x0, y0, x1, y1 in 0-1) over a picture, and a cross on the pixel (x, y) where the map is highest."""
    parts = []
    for name, found in groups:
        for x0, y0, x1, y1 in found:
            place = (
                f'x="{x0 * width:.1f}" y="{y0 * height:.1f}" '
                f'width="{max(x1 - x0, 0) * width:.1f}" height="{max(y1 - y0, 0) * height:.1f}"'
            )
            parts.append(f'<rect class="box under" {place}/><rect class="box {name}" {place}/>')
    x, y = peak[0] + 0.5, peak[1] + 0.5
    arm = width / 28
    cross = f"M{x - arm:.1f} {y}H{x + arm:.1f}M{x} {y - arm:.1f}V{y + arm:.1f}"
    parts.append(f'<path class="peak under" d="{cross}"/><path class="peak" d="{cross}"/>')
    return Markup('<svg class="boxes" viewBox="0 0 {} {}" aria-hidden="true">{}</svg>').format(
        width, height, Markup("".join(parts))
    )


def _span(x: Sequence[float]) -> Axis:
    low, high = min(x), max(x)
    return Axis(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT)


def _frame(xs: Axis, ys: Axis, x_label: str, y_note: str, x_ticks: Sequence[float] | None = None) -> str:
    parts = []
    for value in ys.ticks():
        y = ys(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick_text(value)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for value in xs.ticks(5) if x_ticks is None else x_ticks:
        if x_ticks is None and value != int(value):
            continue  # There is no half step.
        parts.append(
            f'<text class="tick" x="{xs(value)}" y="{base + 14}" text-anchor="middle">{tick_text(value)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle:g}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    if y_note:
        parts.append(f'<text class="label" x="{LEFT + 5}" y="{TOP + 9}">{escape(y_note)}</text>')
    return "".join(parts)


def _line(xs: Axis, ys: Axis, x: Sequence[float], y: Sequence[float], classes: str) -> str:
    points = " ".join(f"{xs(a):g},{ys(b):g}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="{classes}" points="{points}"/>'


def _dot(x: float, y: float, radius: float, tone: str) -> str:
    return f'<circle class="dot t-{tone}" cx="{x}" cy="{y}" r="{radius}"/>'


def _svg(said: str, parts: Sequence[str]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, said, Markup("".join(parts))
    )
