"""The detector that needs no weights: picture objects, connected components, white space, and what lines say.

Good enough for clean pages: figures on paper of one colour, text in columns. It knows nothing of how a page looks to a
person: tables without rules become text, and drawings that are all text are no figures to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pathor1.curation.detectors import PageInput, Region
from pathor1.curation.lines import TABLE, Block, blocks, is_caption, overlap, union
from pathor1.curation.pdf import Corners, Word

VERSION = "1"
# Components are looked for at so many dots an inch.
DPI = 50
# Points (1/72 inch): parts of a figure that are nearer than GAP are one figure; what is smaller than SIDE is none.
GAP, SIDE = 9.0, 40.0
# Grey levels, and levels of colour, by which ink differs from paper.
INK, COLOUR = 40, 36
# A component that is covered by lines of text to this share is a box with text in it.
TEXT_SHARE = 0.25
# Ink's share of a component's box, below which it is a frame or rules.
FILLED = 0.12
# Single lines in these shares of the page, at its top and bottom, are running heads and page numbers.
HEAD, FOOT = 0.09, 0.06
TITLE_RATIO = 1.15

Mask = npt.NDArray[np.bool_]
Colour = npt.NDArray[np.float64]


class Classical:
    """A `Detector`."""

    name = f"classical detector {VERSION}"

    def regions(self, page: PageInput) -> list[Region]:
        figures = _figures(page)
        inside: list[list[Word]] = [[] for _ in figures]
        outside: list[Word] = []
        for line in page.lines:
            place = next((place for place, box in enumerate(figures) if _within(line.box, box)), None)
            (outside if place is None else inside[place]).append(line)
        found = [
            Region(kind="figure", box=box, score=1.0, lines=tuple(own))
            for box, own in zip(figures, inside, strict=True)
        ]
        text = blocks(outside, ocr=page.ocr)
        sizes = [line.size for block in text for line in block.lines for _ in range(len(line.text))]
        body = median(sizes) if sizes else 10.0
        return [
            *found,
            *(
                Region(kind=_kind(block, page, body), box=block.box, score=1.0, lines=tuple(block.lines))
                for block in text
            ),
        ]


def _kind(block: Block, page: PageInput, body: float) -> str:
    first, height = block.lines[0].text, page.picture.height
    if is_caption(first):
        return "caption"
    if TABLE.match(first):
        return "other"
    top, bottom = block.box[1], block.box[3]
    if len(block.lines) == 1 and (bottom < HEAD * height or top > (1 - FOOT) * height):
        return "other"
    if len(block.lines) <= 3 and block.size >= TITLE_RATIO * body and not page.ocr:
        return "title"
    return "text"


def _within(box: Corners, around: Corners) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return around[0] <= x <= around[2] and around[1] <= y <= around[3]


def _figures(page: PageInput) -> list[Corners]:
    point = page.dpi / 72
    boxes = [*page.pictures, *_components(page)]
    # Not those of a picture's own frame alone: what is small now may be a part of what is large once merged.
    merged = _merged(boxes, GAP * point, page.lines)
    return [
        box
        for box in merged
        if min(box[2] - box[0], box[3] - box[1]) >= SIDE * point and _text_share(box, page.lines) < TEXT_SHARE
    ]


def _merged(boxes: Sequence[Corners], gap: float, lines: Sequence[Word]) -> list[Corners]:
    """Boxes that touch, or lie nearer than `gap` with no line of text in between, as one; until none are left."""
    found = list(dict.fromkeys(boxes))
    place = 0
    while place < len(found):
        one = found[place]
        # Those before it too: the box may have grown, and what does not grow has been compared.
        other = next((at for at, each in enumerate(found) if at != place and _are_one(one, each, gap, lines)), None)
        if other is None:
            place += 1
            continue
        found[place] = union([one, found[other]])
        del found[other]
        place -= other < place
    return found


def _are_one(one: Corners, other: Corners, gap: float, lines: Sequence[Word]) -> bool:
    x, y = overlap(one, other, 0), overlap(one, other, 1)
    if x > 0 and y > 0:
        return True
    near = (x > -gap and y > 0.3 * min(_side(one, 1), _side(other, 1))) or (
        y > -gap and x > 0.3 * min(_side(one, 0), _side(other, 0))
    )
    return near and not _text_between(one, other, lines)


def _side(box: Corners, axis: int) -> float:
    return box[axis + 2] - box[axis]


def _text_between(one: Corners, other: Corners, lines: Sequence[Word]) -> bool:
    both = union([one, other])
    return any(
        _within(line.box, both) and not _within(line.box, one) and not _within(line.box, other) for line in lines
    )


def _text_share(box: Corners, lines: Sequence[Word]) -> float:
    covered = 0.0
    for line in lines:
        covered += max(0.0, overlap(line.box, box, 0)) * max(0.0, overlap(line.box, box, 1))
    return covered / max(_side(box, 0) * _side(box, 1), 1.0)


def _components(page: PageInput) -> list[Corners]:
    """Boxes of what is neither paper nor text nor a picture object, in pixels of the page."""
    from scipy import ndimage

    factor = min(1.0, DPI / page.dpi)
    size = (max(1, round(page.picture.width * factor)), max(1, round(page.picture.height * factor)))
    pixels = np.asarray(page.picture.resize(size, Image.Resampling.BOX), dtype=np.int16)
    paper = np.percentile(pixels.reshape(-1, 3), 85, axis=0)
    ink = _ink(pixels, paper)
    for line in page.lines:
        _erase(ink, line.box, factor, margin=1)
    for box in page.pictures:
        _erase(ink, box, factor, margin=2)
    around = max(1, round(3 * DPI / 72))
    closed: Mask = ndimage.binary_closing(np.pad(ink, around), np.ones((3, 3)), iterations=around)
    labels, _ = ndimage.label(closed[around:-around, around:-around])
    found: list[Corners] = []
    slices: list[Any] = ndimage.find_objects(labels)
    for number, (rows, columns) in enumerate(slices, start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) < 0.3 * SIDE * DPI / 72:
            continue
        if (labels[rows, columns] == number).mean() < FILLED:
            continue
        # Whole pixels of a coarse picture: the edge is looked for in the fine one.
        box = (columns.start / factor, rows.start / factor, columns.stop / factor, rows.stop / factor)
        found.append(_tightened(page, box, paper, margin=2 / factor))
    return found


def _ink(pixels: npt.NDArray[np.int16], paper: Colour) -> Mask:
    """Where a picture (height x width x RGB) is not paper: darker than it, or of another colour."""
    grey = pixels.mean(axis=2)
    colour = np.abs((pixels - paper) - (grey - paper.mean())[..., None]).max(axis=2)
    return (np.abs(grey - paper.mean()) > INK) | (colour > COLOUR)


def _erase(ink: Mask, box: Corners, factor: float, *, margin: int) -> None:
    left, top = (max(0, int(value * factor) - margin) for value in box[:2])
    right, bottom = (int(value * factor + 1) + margin for value in box[2:])
    ink[top:bottom, left:right] = False


def _tightened(page: PageInput, box: Corners, paper: Colour, *, margin: float) -> Corners:
    """A box in coarse pixels, brought to the ink's own edge."""
    width, height = page.picture.size
    outer = (
        max(0, int(box[0] - margin)),
        max(0, int(box[1] - margin)),
        min(width, int(box[2] + margin) + 1),
        min(height, int(box[3] + margin) + 1),
    )
    if outer[2] <= outer[0] or outer[3] <= outer[1]:
        return box
    ink = _ink(np.asarray(page.picture.crop(outer), dtype=np.int16), paper)
    # Where a row or column is mostly ink; a letter beside the figure is not.
    columns, rows = np.flatnonzero(ink.mean(axis=0) > 0.1), np.flatnonzero(ink.mean(axis=1) > 0.1)
    if not len(columns) or not len(rows):
        return box
    return (
        float(outer[0] + columns[0]),
        float(outer[1] + rows[0]),
        float(outer[0] + columns[-1] + 1),
        float(outer[1] + rows[-1] + 1),
    )
