"""Words into lines, lines into blocks, blocks into text: what is written on a page, in the order it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pathor1.curation.pdf import Corners, Word

# The beginning of a caption: "Figure 3-2", "FIG. 12.4", "Fig. 3". What follows may not be in lower case: "Figure 3-2
# shows" is a sentence.
NUMBER = r"[A-Z]?\d{1,3}(?:\s?[-‐‑–.·]\s?\d{1,3}){0,3}"  # noqa: RUF001 (the hyphens and dashes of print)
CAPTION = re.compile(
    rf"(?P<label>(?:Fig(?:ure)?|FIG(?:URE)?|Plate|PLATE)\b\.?\s*(?P<number>(?>{NUMBER})))"
    r"(?P<panel>[A-Z](?![A-Za-z]))?\s*(?P<rest>[^a-z\s].*)?$",
    re.DOTALL,
)
TABLE = re.compile(rf"(?:Table|TABLE|Box|BOX)\s+{NUMBER}")
# Words that lie farther apart than so many heights of the letters are of two columns.
WORD_GAP = 1.2
# The label of a caption may be set off from its text by more.
LABEL_GAP = 4.0
# Lines of a block: the gap between them, in heights; and the ratio of their sizes.
LINE_GAP = 0.75
SIZE_RATIO = 1.12
# Cuts of a page into parts of parts; what is cut further is no page of a book.
DEEPEST = 200


@dataclass(slots=True)
class Block:
    """Lines that belong together. box: around all of them."""

    lines: list[Word]

    @property
    def box(self) -> Corners:
        return union([line.box for line in self.lines])

    @property
    def size(self) -> float:
        return median(line.size for line in self.lines)

    @property
    def text(self) -> str:
        return joined([line.text for line in self.lines])


def union(boxes: Sequence[Corners]) -> Corners:
    """The smallest box around all of them."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def overlap(one: Corners, other: Corners, axis: int) -> float:
    """How much two boxes share along x (0) or y (1), in pixels; negative = the gap between them."""
    return min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis])


def of_words(words: Sequence[Word]) -> list[Word]:
    """Words as lines, each within its column, from top to bottom."""
    rows: list[list[Word]] = []
    for word in sorted(words, key=lambda each: (each.box[1] + each.box[3], each.box[0])):
        height = word.box[3] - word.box[1]
        for row in reversed(rows[-12:]):
            last = row[-1].box
            if overlap(last, word.box, 1) > 0.6 * min(height, last[3] - last[1]):
                row.append(word)
                break
        else:
            rows.append([word])
    lines = [line for row in rows for line in _segments(sorted(row, key=lambda each: each.box[0]))]
    return sorted(lines, key=lambda line: (line.box[1], line.box[0]))


def _segments(row: Sequence[Word]) -> list[Word]:
    """A row of the page, cut where columns are apart."""
    found: list[list[Word]] = []
    for word in row:
        if found:
            before = found[-1]
            height = max(before[-1].box[3] - before[-1].box[1], 1.0)
            gap = (word.box[0] - before[-1].box[2]) / height
            is_label = CAPTION.fullmatch(" ".join(each.text for each in before)) is not None
            if gap <= (LABEL_GAP if is_label and len(before) <= 3 else WORD_GAP):
                before.append(word)
                continue
        found.append([word])
    return [
        Word(
            text=" ".join(word.text for word in words),
            box=union([word.box for word in words]),
            size=median(word.size for word in words),
        )
        for words in found
    ]


def blocks(lines: Sequence[Word], *, ocr: bool) -> list[Block]:
    """Lines as blocks: near each other, of one size, over each other; a caption's label begins another one.

    ocr: sizes are heights of lines, which vary with the letters in them.
    """
    found: list[Block] = []
    open_blocks: list[Block] = []  # those that a line further down may still go on
    for line in sorted(lines, key=lambda each: (each.box[1], each.box[0])):
        reach = line.box[1] - 2 * (line.box[3] - line.box[1])
        open_blocks = [block for block in open_blocks if block.lines[-1].box[3] >= reach]
        begins = is_caption(line.text) or TABLE.match(line.text) is not None
        best = None if begins else _above(open_blocks, line, 1.6 * SIZE_RATIO if ocr else SIZE_RATIO)
        if best is None:
            best = Block([])
            found.append(best)
            open_blocks.append(best)
        best.lines.append(line)
    return found


def _above(found: Sequence[Block], line: Word, most_ratio: float) -> Block | None:
    """The block that a line goes on, the nearest above it."""
    height = line.box[3] - line.box[1]
    best, nearest = None, LINE_GAP * height
    for block in found:
        last = block.lines[-1]
        narrower = min(last.box[2] - last.box[0], line.box[2] - line.box[0])
        ratio = max(last.size, line.size) / max(min(last.size, line.size), 1e-6)
        gap = line.box[1] - last.box[3]
        if (
            -0.5 * height < gap <= nearest
            and overlap(last.box, line.box, 0) > 0.5 * narrower
            and ratio <= most_ratio
            and abs(last.box[0] - line.box[0]) < max(8 * height, 0.3 * (line.box[2] - line.box[0]))
        ):
            best, nearest = block, gap
    return best


def is_caption(text: str) -> bool:
    """Whether a text begins as a caption does: "Figure 3-2 Normal colon", and not "Figure 3-2 shows"."""
    return CAPTION.match(text) is not None


def joined(lines: Sequence[str]) -> str:
    """Lines as running text: a word that was divided at the end of a line is whole again."""
    text = ""
    for line in map(str.strip, lines):
        if text.endswith("-") and line[:1].islower() and text[-2:-1].isalpha():
            text = text[:-1] + line
        elif text.endswith(("-", "–")) and line[:1].isdigit() and text[-2:-1].isdigit():  # noqa: RUF001
            text += line
        else:
            text = f"{text} {line}".strip()
    return text


def reading_order(boxes: Sequence[Corners]) -> list[int]:
    """Places of boxes in the order they are read: columns one after the other, what spans them in between."""
    return _ordered(list(range(len(boxes))), boxes, depth=0)


def _ordered(places: list[int], boxes: Sequence[Corners], *, depth: int) -> list[int]:
    if len(places) <= 1 or depth > DEEPEST:
        return sorted(places, key=lambda place: (boxes[place][1], boxes[place][0]))
    gutter = _gutter([boxes[place] for place in places])
    if gutter is not None:
        left = [place for place in places if boxes[place][2] <= gutter]
        right = [place for place in places if boxes[place][2] > gutter]
        return [*_ordered(left, boxes, depth=depth + 1), *_ordered(right, boxes, depth=depth + 1)]
    widest = max(places, key=lambda place: boxes[place][2] - boxes[place][0])
    middle = boxes[widest]
    row = [place for place in places if place == widest or _beside(boxes[place], middle)]
    above = [place for place in places if place not in row and boxes[place][1] < middle[1]]
    below = [place for place in places if place not in row and place not in above]
    row.sort(key=lambda place: (boxes[place][0], boxes[place][1]))
    return [*_ordered(above, boxes, depth=depth + 1), *row, *_ordered(below, boxes, depth=depth + 1)]


def _beside(box: Corners, middle: Corners) -> bool:
    return overlap(box, middle, 1) > 0.5 * min(box[3] - box[1], middle[3] - middle[1])


def _gutter(boxes: Sequence[Corners]) -> float | None:
    """An x that no box crosses, with boxes on both sides; None where there is none."""
    reach = -1.0
    for left, _, right, _ in sorted(boxes):
        if 0 <= reach < left:
            return (reach + left) / 2
        reach = max(reach, right)
    return None
