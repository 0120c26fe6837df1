"""Series -> an inline SVG chart: pure functions, colours from the page's style sheet, so it follows light and dark.

A chart is drawn in units of a picture of `WIDTH` x `HEIGHT`, which the page scales to the room there is. Lines have the
classes `c0`, `c1` ...; everything else is `currentColor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from statistics import fmean
from typing import Literal

from markupsafe import Markup

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 36  # margins around the lines, for ticks and labels
# What a screen shows of a line: more points than this only make the page larger.
MOST_POINTS = 400
# Beyond this (and, for what is divided by, below its inverse) arithmetic may overflow; such a value is drawn as a gap.
LARGEST = 1e150

Point = tuple[float, float]  # step, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: a value for each of the ascending steps; one that is not finite is a gap.

    low, high: the interval of each value, where it has one, which is drawn as a band. colour: 0 to 7; None = that of
    its place in the chart.
    """

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int | None = None

    @property
    def edges(self) -> tuple[Series, ...]:
        """The lines of the lower and the upper ends; none without intervals."""
        both = (self.low, self.high) if self.low and self.high else ()
        return tuple(Series(name=self.name, steps=self.steps, values=values) for values in both)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What to draw. Example: Chart(title="Entropy", unit="nats", series=(entropy,), include=(0.0,))."""

    title: str
    unit: str
    series: tuple[Series, ...]
    include: tuple[float, ...] = ()  # values that the vertical axis reaches in any case
    log: bool = False
    limit: float | None = None  # a dashed line
    bucket: Literal["mean", "max"] = "mean"  # what a point of a thinned line is

    @property
    def colours(self) -> list[str]:
        """The class of each line."""
        own = [place if series.colour is None else series.colour for place, series in enumerate(self.series)]
        return [f"c{colour}" for colour in own]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From values to places: `low` and `high` (of a log axis: their exponents of 10) and the values that have ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 = low, 1 = high; the middle where they are the same."""
        place = math.log10(value) if self.log else value
        return (place - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def drawable(value: float, *, log: bool) -> bool:
    """Whether a value has a place in a chart: finite, and on a log axis above 0."""
    return math.isfinite(value) and abs(value) < LARGEST and (value > 1 / LARGEST or not log)


def bucket_size(count: int) -> int:
    """How many consecutive steps one point stands for, so that there are at most `MOST_POINTS` of them."""
    return max(1, math.ceil(count / MOST_POINTS))


def thin(series: Series, *, bucket: Literal["mean", "max"] = "mean", log: bool = False) -> list[Point]:
    """At most `MOST_POINTS` points: of each bucket its mean step, and the mean or maximum of its drawable values.

    A bucket without a drawable value is NaN, a gap. Example: 800 steps with the values 0, 1, 2 ... -> (1.5, 0.5) first.
    """
    size = bucket_size(len(series.steps))
    points: list[Point] = []
    for start in range(0, len(series.steps), size):
        values = [value for value in series.values[start : start + size] if drawable(value, log=log)]
        middle = fmean(series.steps[start : start + size])
        points.append((middle, (max(values) if bucket == "max" else fmean(values)) if values else math.nan))
    return points


def linear_axis(low: float, high: float) -> Axis:
    """An axis from a round number below `low` to one above `high`, with ticks 1, 2 or 5 times a power of 10 apart."""
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1 / LARGEST):  # all the same
        around = abs(low) / 10
        low, high = (low - around, high + around) if around > 1 / LARGEST else (0.0, 1.0)
    step = round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(low=first * step, high=last * step, ticks=tuple(k * step for k in range(first, last + 1)))


def log_axis(low: float, high: float) -> Axis:
    """An axis over whole powers of 10 from below `low` to above `high`, both above 0, with at most about six ticks."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    every = math.ceil((last - first) / 5)
    return Axis(low=first, high=last, ticks=tuple(10.0**k for k in range(first, last + 1, every)), log=True)


def step_axis(first: int, last: int) -> Axis:
    """The axis of steps, from the first to the last, with ticks at round whole steps; of one step, that step."""
    step = max(1, round(round_step((last - first) / 5))) if last > first else 1
    return Axis(low=first, high=last, ticks=tuple(float(k) for k in range(-(-first // step) * step, last + 1, step)))


def round_step(raw: float) -> float:
    """The smallest of 1, 2, 5, 10 times a power of 10 that is at least `raw`, which is above 0."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))


def number(value: float) -> str:
    """A value in words for people: three digits, and none but digits where it is 1,000 or more."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def svg(chart: Chart) -> Markup | None:
    """The chart as an `<svg>` element; None where no value can be drawn."""
    lines = [thin(series, bucket=chart.bucket, log=chart.log) for series in chart.series]
    bands = [[thin(edge, log=chart.log) for edge in series.edges] for series in chart.series]
    drawn = [*lines, *(edge for band in bands for edge in band)]
    values = [value for line in drawn for _, value in line if not math.isnan(value)]
    if not values:
        return None
    steps = [step for series in chart.series for step in series.steps]
    x = step_axis(min(steps), max(steps))
    values += [*chart.include, *([] if chart.limit is None else [chart.limit])]
    y = (log_axis if chart.log else linear_axis)(min(values), max(values))
    parts = [*_frame(chart, x, y), *_limit(chart, y)]
    for name, band in zip(chart.colours, bands, strict=True):
        parts += _band([[(_across(x, step), _up(y, value)) for step, value in edge] for edge in band], name)
    for name, line in zip(chart.colours, lines, strict=True):
        parts += _line([(_across(x, step), _up(y, value)) for step, value in line], name)
    label = ", ".join(f"{series.name} {number(series.values[-1])} last" for series in chart.series)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{chart.title}: {label}")}">'
    return Markup("".join([head, *parts, "</svg>"]))


def _across(axis: Axis, step: float) -> float:
    return LEFT + axis.share(step) * (WIDTH - LEFT - RIGHT)


def _up(axis: Axis, value: float) -> float:
    return math.nan if math.isnan(value) else HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - BOTTOM - TOP)


def _frame(chart: Chart, x: Axis, y: Axis) -> list[str]:
    """Ticks with their numbers, a faint line for each vertical one, and what is on the axes."""
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<text x="0" y="10">{escape(chart.unit)}</text>']
    for tick in y.ticks:
        up = _up(y, tick)
        text = f"1e{math.log10(tick):.0f}" if y.log else f"{tick:.6g}"
        parts.append(f'<path class="grid" d="M{LEFT} {up:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{right}"/>')
    for tick in x.ticks:
        across = _across(x, tick)
        parts.append(f'<path class="axis" d="M{across:.1f} {floor}v4"/>')
        parts.append(f'<text x="{across:.1f}" y="{floor + 16}" text-anchor="middle">{tick:.0f}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    return parts


def _limit(chart: Chart, y: Axis) -> list[str]:
    """The dashed line of the limit and its number, above the line where there is room."""
    if chart.limit is None:
        return []
    up = _up(y, chart.limit)
    beside = up - 5 if up - TOP > 16 else up + 13
    return [
        f'<path class="limit" d="M{LEFT} {up:.1f}H{WIDTH - RIGHT}"/>',
        f'<text class="halo" x="{WIDTH - RIGHT}" y="{beside:.1f}" text-anchor="end">limit {chart.limit:g}</text>',
    ]


def _band(edges: Sequence[Sequence[Point]], name: str) -> list[str]:
    """The area between the lower and the upper ends; of a single step, an upright line."""
    if not edges:
        return []
    low, high = ([f"{across:.1f} {up:.1f}" for across, up in edge if not math.isnan(up)] for edge in edges)
    if len(low) == 1:
        return [f'<path class="reach {name}" d="M{low[0]}L{high[0]}"/>']
    return [f'<path class="band {name}" d="M{"L".join([*low, *reversed(high)])}Z"/>']


def _line(places: Sequence[Point], name: str) -> list[str]:
    """A path for each stretch without a gap, and a dot where a stretch is one point and where the last one ends."""
    groups = groupby(places, key=lambda place: math.isnan(place[1]))
    stretches = [[f"{across:.1f} {up:.1f}" for across, up in group] for gap, group in groups if not gap]
    parts = [f'<path class="line {name}" d="M{"L".join(points)}"/>' for points in stretches if len(points) > 1]
    for points in stretches:
        if len(points) == 1 or points is stretches[-1]:
            across, up = points[-1].split()
            parts.append(f'<circle class="dot {name}" cx="{across}" cy="{up}" r="3"/>')
    return parts
