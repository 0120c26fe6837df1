"""Which panel is which: letters that stand in the figure, positions that the caption names, and else the order."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from pathor1.curation.caption_parts import POSITIONS
from pathor1.curation.ocr import Reader
from pathor1.curation.pdf import Corners, Word
from pathor1.curation.pictures import crop
from pathor1.errors import DataError

_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]?")
# A panel's corner that may hold its letter: in inches, as a larger one has so much tissue in it that a detector of text
# passes over one letter; and then of its sides, where letters are large.
CORNER_INCHES, CORNER = 0.45, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel of a figure. box: in pixels of the figure; label_from: text, ocr, order, position, or "" without one."""

    label: str
    box: Corners
    label_from: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The panels, and why a person should look ("" = nothing to see)."""

    panels: tuple[Panel, ...]
    review: str


def label(
    boxes: Sequence[Corners],
    wanted: Sequence[str],
    *,
    figure: Image.Image,
    lines: Sequence[Word],
    text_from: str,
    reader: Reader | None,
    dpi: float,
) -> Labelled:
    """Labels of panels, in their order. wanted: what the caption names. lines: letters in the figure's own pixels."""
    if len(wanted) < 2 or len(boxes) < 2:
        return _undivided(boxes, wanted)
    if wanted[0] in POSITIONS:
        return _by_position(boxes, wanted)
    read = _of_lines(boxes, wanted, lines)
    by = dict.fromkeys(read, "text" if text_from == "pdf" else "ocr")
    if len(read) < len(wanted) and reader is not None:
        for place, letter in _of_corners(boxes, wanted, read, figure, reader, dpi).items():
            read[place] = letter
            by[place] = "ocr"
    if len(boxes) == len(wanted):
        return _in_order(boxes, wanted, read, by)
    panels = tuple(
        Panel(label=read[place], box=boxes[place], label_from=by[place]) for place in range(len(boxes)) if place in read
    )
    counts = f"the caption names {len(wanted)} panels, and {len(boxes)} are found"
    if len(panels) == len(wanted):
        return Labelled(panels=panels, review=counts)
    return Labelled(panels=_whole(boxes), review=counts)


def _undivided(boxes: Sequence[Corners], wanted: Sequence[str]) -> Labelled:
    """The figure as one panel where the caption or the picture knows of one only."""
    review = ""
    if len(boxes) > 1:
        review = f"{len(boxes)} panels are found, and the caption names none"
    elif len(wanted) > 1:
        review = f"the caption names {len(wanted)} panels, and 1 is found"
    return Labelled(panels=_whole(boxes), review=review)


def _whole(boxes: Sequence[Corners]) -> tuple[Panel, ...]:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return (Panel(label="", box=(min(lefts), min(tops), max(rights), max(bottoms)), label_from=""),)


def _in_order(
    boxes: Sequence[Corners], wanted: Sequence[str], read: Mapping[int, str], by: Mapping[int, str]
) -> Labelled:
    """As many panels as labels: what was read stands, and the others follow in order."""
    left = [each for each in wanted if each not in read.values()]
    labels = [read[place] if place in read else left.pop(0) for place in range(len(boxes))]
    panels = tuple(
        Panel(label=each, box=box, label_from=by.get(place, "order"))
        for place, (each, box) in enumerate(zip(labels, boxes, strict=True))
    )
    review = ""
    if labels != list(wanted):
        review = f"the labels are not in order: {', '.join(labels)}"
    elif not read:
        review = "no label could be read in the picture; they are given in order"
    return Labelled(panels=panels, review=review)


def _of_lines(boxes: Sequence[Corners], wanted: Sequence[str], lines: Sequence[Word]) -> dict[int, str]:
    """Place of the panel -> the letter in it, or nearest to it; a letter that comes twice is none."""
    found: dict[int, list[str]] = {}
    for line in lines:
        letter = _letter(line.text, wanted)
        if letter is not None:
            x, y = (line.box[0] + line.box[2]) / 2, (line.box[1] + line.box[3]) / 2
            place = min(range(len(boxes)), key=lambda each: _distance(boxes[each], x, y))
            found.setdefault(place, []).append(letter)
    read = {place: letters[0] for place, letters in found.items() if len(set(letters)) == 1}
    return {place: letter for place, letter in read.items() if list(read.values()).count(letter) == 1}


def _letter(text: str, wanted: Sequence[str]) -> str | None:
    match = _LETTER.fullmatch(text.strip())
    letter = match[1].upper() if match else ""
    return letter if letter in wanted else None


def _distance(box: Corners, x: float, y: float) -> float:
    """From a point to a box; 0 within it."""
    return max(box[0] - x, 0.0, x - box[2]) + max(box[1] - y, 0.0, y - box[3])


def _of_corners(
    boxes: Sequence[Corners],
    wanted: Sequence[str],
    read: Mapping[int, str],
    figure: Image.Image,
    reader: Reader,
    dpi: float,
) -> dict[int, str]:
    """The letters that OCR reads in the corners of the panels that have none yet."""
    found: dict[int, str] = {}
    for place, box in enumerate(boxes):
        if place in read:
            continue
        free = [each for each in wanted if each not in read.values() and each not in found.values()]
        for corner in _corners(box, CORNER_INCHES * dpi):
            picture = crop(figure, corner)
            letters: set[str | None] = set()
            with contextlib.suppress(DataError):  # not read in time
                letters = {_letter(line.text, free) for line in reader.lines(picture, dpi)} - {None}
            if len(letters) == 1:
                found[place] = str(letters.pop())
                break
    return found


def _corners(box: Corners, side: float) -> list[Corners]:
    """The four corners of a panel as boxes, top left first: squares of this side, and then larger ones."""
    left, top, right, bottom = box
    found: list[Corners] = []
    for width, height in ((side, side), (CORNER * (right - left), CORNER * (bottom - top))):
        across, down = min(width, right - left), min(height, bottom - top)
        found += [
            (left, top, left + across, top + down),
            (left, bottom - down, left + across, bottom),
            (right - across, top, right, top + down),
            (right - across, bottom - down, right, bottom),
        ]
    return found


def _by_position(boxes: Sequence[Corners], wanted: Sequence[str]) -> Labelled:
    """Panels by where they lie: "upper left", "right"."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    middle = (min(lefts) + max(rights)) / 2, (min(tops) + max(bottoms)) / 2
    found: dict[int, str] = {}
    for each in wanted:
        fits = [place for place, box in enumerate(boxes) if place not in found and _fits(each, box, middle)]
        if len(fits) != 1:
            return Labelled(panels=_whole(boxes), review=f"{len(fits)} panels are found that may be the one: {each}")
        found[fits[0]] = each
    panels = tuple(Panel(label=found[place], box=boxes[place], label_from="position") for place in sorted(found))
    unnamed = len(boxes) - len(found)
    return Labelled(
        panels=panels, review=f"{unnamed} panels are found that the caption does not name" if unnamed else ""
    )


def _fits(position: str, box: Corners, middle: tuple[float, float]) -> bool:
    x, y = (box[0] + box[2]) / 2 - middle[0], (box[1] + box[3]) / 2 - middle[1]
    width, height = box[2] - box[0], box[3] - box[1]
    rules = {
        "left": x < -0.2 * width,
        "right": x > 0.2 * width,
        "upper": y < -0.2 * height,
        "top": y < -0.2 * height,
        "lower": y > 0.2 * height,
        "bottom": y > 0.2 * height,
        "middle": abs(x) <= 0.3 * width and abs(y) <= 0.3 * height,
    }
    rules["center"] = rules["middle"]
    return all(rules[word] for word in position.split())
