"""Values -> an inline SVG of boxes, as the paper's figure 3 has them: a pure function, in the manner of `curves`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from markupsafe import Markup

from pathor1.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, linear_axis, number


def boxes(title: str, unit: str, groups: Mapping[str, Mapping[str, Sequence[float]]], across: str) -> Markup:
    """A box for each place and each group, next to each other.

    groups: name -> place -> values; all have the same places, and none is empty. A box goes from the first quartile to
    the third, with the median in it; its lines go to the outermost values within 1.5 box lengths, and what lies beyond
    is a dot. across: what the places are.
    """
    places = list(next(iter(groups.values())))
    values = [value for group in groups.values() for each in group.values() for value in each]
    y = linear_axis(min(values), max(values))
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def up(value: float) -> float:
        return floor - y.share(value) * (floor - TOP)

    parts = [f'<text x="0" y="10">{escape(unit)}</text>']
    for tick in y.ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {up(tick):.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{right}"/>')
    room = (right - LEFT) / len(places)
    width = 0.8 * room / len(groups)
    for at, place in enumerate(places):
        parts.append(
            f'<text x="{LEFT + (at + 0.5) * room:.1f}" y="{floor + 16}" text-anchor="middle">{escape(place)}</text>'
        )
        for colour, group in enumerate(groups.values()):
            left = LEFT + (at + 0.1) * room + colour * width
            parts += _box([(up(value), value) for value in group[place]], left, width, f"c{colour % 8}")
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>')
    medians = (f"{name} {number(float(np.median(group[places[-1]])))}" for name, group in groups.items())
    label = escape(f"{title}: medians of {places[-1]}: {', '.join(medians)}")
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return Markup("".join([head, *parts, "</svg>"]))


def _box(points: Sequence[tuple[float, float]], left: float, width: float, colour: str) -> list[str]:
    """points: (place from above, value) of each."""
    of_value = {value: up for up, value in points}
    values = np.asarray(sorted(of_value))
    all_values = np.asarray([value for _, value in points])
    low, middle, high = (float(each) for each in np.percentile(all_values, [25, 50, 75]))
    within = values[(values >= low - 1.5 * (high - low)) & (values <= high + 1.5 * (high - low))]
    known = np.asarray([of_value[value] for value in values])

    def up(value: float) -> float:
        return float(np.interp(value, values, known))

    centre, inner = left + width / 2, max(1.0, 0.8 * width)
    start = centre - inner / 2
    parts = [
        (
            f'<path class="line {colour}" d="M{centre:.1f} {up(float(within[0])):.1f}V{up(low):.1f}'
            f'M{centre:.1f} {up(high):.1f}V{up(float(within[-1])):.1f}"/>'
        ),
        f'<path class="line {colour}" d="M{start:.1f} {up(low):.1f}h{inner:.1f}V{up(high):.1f}h{-inner:.1f}Z"/>',
        f'<path class="line {colour}" d="M{start:.1f} {up(middle):.1f}h{inner:.1f}"/>',
    ]
    outside = [value for value in values.tolist() if value not in set(within.tolist())]
    return parts + [f'<circle class="dot {colour}" cx="{centre:.1f}" cy="{up(value):.1f}" r="2"/>' for value in outside]
