"""A composite figure into panels: along gutters, strips of paper or black with straight edges, or along plain edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pathor1.curation.pdf import Corners

# A figure is looked at with no more pixels than this along its longer side.
LONGEST = 1400
# How far a gutter's pixels may be from its colour, of 255; scans are noisy.
TOLERANCE = 18
# The share of a strip's pixels that have the gutter's colour: the rest is dust, and the corner of a letter.
CLEAN = 0.97
# Along a gutter's edge at least this share is picture. Where tissue fades into the white of the glass it is far less.
STRAIGHT = 0.55
# How far an edge without a gutter stands out of the texture, in median deviations; and how far from the sides it lies.
EDGE, EDGE_MARGIN = 9.0, 0.15
# Ink's share of a panel; what has less is a strip of paper with a letter on it.
FILLED = 0.12
DEEPEST = 8

Pixels = npt.NDArray[np.int16]
Line = npt.NDArray[np.float64]
_Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A gutter: from `first` to `last`, behind it, along an axis."""

    first: int
    last: int


def split(figure: Image.Image, *, min_gutter: float, min_panel: float, expected: int) -> list[Corners]:
    """The panels in pixels of the figure, row by row; one box, the whole figure, where nothing divides it.

    min_gutter: of the longer side; min_panel: a panel's sides, of the figure's. expected: how many the caption names;
    edges without a gutter are looked for only where it names more than the gutters give.
    """
    factor = min(1.0, LONGEST / max(figure.size))
    size = (max(1, round(figure.width * factor)), max(1, round(figure.height * factor)))
    pixels = np.asarray(figure.convert("RGB").resize(size, Image.Resampling.BOX), dtype=np.int16)
    cutter = _Cutter(pixels, gutter=max(2, round(min_gutter * max(size))), least=min_panel)
    boxes = cutter.panels((0, 0, size[0], size[1]))
    while len(boxes) < expected and (further := cutter.cut_at_an_edge(boxes)) is not None:
        boxes = further
    if not boxes:
        boxes = [(0, 0, size[0], size[1])]
    return [
        (left / factor, top / factor, min(right / factor, figure.width), min(bottom / factor, figure.height))
        for left, top, right, bottom in in_rows(boxes)
    ]


def in_rows(boxes: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Boxes as they are read: row by row, each from left to right."""
    rows: list[list[_Box]] = []
    for box in sorted(boxes, key=lambda each: each[1]):
        for row in rows:
            shared = min(row[0][3], box[3]) - max(row[0][1], box[1])
            if shared > 0.5 * min(row[0][3] - row[0][1], box[3] - box[1]):
                row.append(box)
                break
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row)]


class _Cutter:
    def __init__(self, pixels: Pixels, *, gutter: int, least: float) -> None:
        self._pixels = pixels
        height, width = pixels.shape[:2]
        self._gutter, self._least = gutter, (max(8, round(least * width)), max(8, round(least * height)))
        darkest = pixels.max(axis=2)
        bright = pixels[pixels.min(axis=2) > 225]
        paper = np.median(bright, axis=0) if len(bright) else np.array([255, 255, 255])
        self._masks = (np.abs(pixels - paper).max(axis=2) <= TOLERANCE, darkest <= TOLERANCE)

    def panels(self, box: _Box, depth: int = 0) -> list[_Box]:
        box = self._trimmed(box)
        if box[2] - box[0] < self._least[0] or box[3] - box[1] < self._least[1] or not self._filled(box):
            return []
        for axis in (1, 0):  # rows first: they are read first
            parts = self._cut(box, axis) if depth < DEEPEST else [box]
            if len(parts) > 1:
                return [panel for part in parts for panel in self.panels(part, depth + 1)]
        return [box]

    def _filled(self, box: _Box) -> bool:
        left, top, right, bottom = box
        paper = self._masks[0][top:bottom, left:right]
        return bool(1 - paper.mean() >= FILLED)

    def _trimmed(self, box: _Box) -> _Box:
        """Without the strips of gutter around it."""
        found = list(box)
        for mask in self._masks:
            for axis in (0, 1):
                left, top, right, bottom = found
                clean = mask[top:bottom, left:right].mean(axis=axis) >= CLEAN
                inside = np.flatnonzero(~clean)
                if len(inside):
                    found[axis + 2] = found[axis] + int(inside[-1]) + 1
                    found[axis] += int(inside[0])
        return found[0], found[1], found[2], found[3]

    def _cut(self, box: _Box, axis: int) -> list[_Box]:
        """The parts between gutters across an axis: 0 = side by side, 1 = one over the other."""
        for mask in self._masks:
            strips = self._strips(box, mask, axis)
            if strips:
                edges = [
                    0,
                    *(edge for strip in strips for edge in (strip.first, strip.last)),
                    box[axis + 2] - box[axis],
                ]
                return [
                    _part(box, axis, edges[place], edges[place + 1])
                    for place in range(0, len(edges), 2)
                    if edges[place + 1] > edges[place]
                ]
        return [box]

    def _strips(self, box: _Box, mask: npt.NDArray[np.bool_], axis: int) -> list[Strip]:
        left, top, right, bottom = box
        inside = mask[top:bottom, left:right] if axis else mask[top:bottom, left:right].T
        share: Line = inside.mean(axis=1)  # of each line across the axis
        clean = np.concatenate([[False], share >= CLEAN, [False]])
        starts, ends = np.flatnonzero(~clean[:-1] & clean[1:]), np.flatnonzero(clean[:-1] & ~clean[1:])
        least = self._least[axis]
        found: list[Strip] = []
        for first, last in zip(starts.tolist(), ends.tolist(), strict=True):
            inner = first >= least / 2 and last <= len(share) - least / 2
            if inner and last - first >= self._gutter and self._straight(share, first, last):
                found.append(Strip(first=first, last=last))
        return found

    def _straight(self, share: Line, first: int, last: int) -> bool:
        """Whether picture begins at once on both sides; where text stands on one, on the other."""
        before, after = share[max(0, first - 4) : first], share[last : last + 4]
        return bool(1 - before.min() >= STRAIGHT or 1 - after.min() >= STRAIGHT) and bool(
            1 - max(before.min(), after.min()) >= STRAIGHT or last - first >= 3 * self._gutter
        )

    def cut_at_an_edge(self, boxes: Sequence[_Box]) -> list[_Box] | None:
        """The panels with one of them cut at the plainest edge in any; None where no edge stands out."""
        best: tuple[float, int, int, int] | None = None  # how far, which panel, axis, where
        for place, (left, top, right, bottom) in enumerate(boxes):
            for axis in (0, 1):
                part = self._pixels[top:bottom, left:right]
                height, where = _plainest_edge(part if axis else part.transpose(1, 0, 2), self._least[axis])
                if height >= EDGE and (best is None or height > best[0]):
                    best = (height, place, axis, where)
        if best is None:
            return None
        _, place, axis, where = best
        box = boxes[place]
        halves = [_part(box, axis, 0, where), _part(box, axis, where, box[axis + 2] - box[axis])]
        return [*boxes[:place], *halves, *boxes[place + 1 :]]


def _part(box: _Box, axis: int, first: int, last: int) -> _Box:
    left, top, right, bottom = box
    return (left, top + first, right, top + last) if axis else (left + first, top, left + last, bottom)


def _plainest_edge(part: Pixels, least: int) -> tuple[float, int]:
    """How far the plainest edge between two rows stands out, in median deviations, and before which row it is."""
    rows = len(part)
    margin = max(least, round(EDGE_MARGIN * rows))
    if rows <= 2 * margin + 4:
        return 0.0, 0
    grey = part.mean(axis=2)
    # The share of columns in which two rows differ: an edge goes right across, a nucleus does not.
    differs: Line = (np.abs(grey[1:] - grey[:-1]) > TOLERANCE).mean(axis=1)
    middle = differs[margin - 1 : rows - margin]
    spread = float(np.median(np.abs(middle - np.median(middle)))) or 1e-3
    peak = int(np.argmax(middle))
    if middle[peak] < 0.4:
        return 0.0, 0
    return float((middle[peak] - np.median(middle)) / max(spread, 0.01)), peak + margin
