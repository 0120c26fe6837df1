"""Figures and captions, one to one: the pairs that lie nearest to each other in all, by the Hungarian method.

Pure geometry and text of a few pages, no pictures: what a page's match is depends on that page and the two on either
side of it, so that a book can be worked on in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pathor1.curation.lines import CAPTION, joined, overlap, union
from pathor1.curation.pdf import Corners, Word

# Captions stand below far more often than beside or above: what decides where two are equally near.
SIDES = {"below": 0.0, "beside": 0.01, "above": 0.015}
# What a caption that is not in line with the figure costs, at most; and text or another figure in between.
MISALIGNED, BETWEEN = 0.1, 0.2
# A caption on the next page: the figure's distance to the foot and the caption's to the head, of the page's height.
ACROSS = 0.5
# Parts of one figure lie no farther apart, of the page's height.
PARTS_APART = 0.03
_ENDS = (".", "!", "?", ")", "]", '"', "”")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A region of a page, as the stage `layout` has it. place: in the reading order."""

    id: str
    kind: str
    box: Corners
    place: int
    text: str
    lines: tuple[Word, ...]
    text_from: str

    @property
    def size(self) -> float:
        return median(line.size for line in self.lines) if self.lines else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFound:
    """The regions of a page in reading order, and its size in pixels."""

    page: int
    width: int
    height: int
    regions: tuple[Found, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A caption with all that goes on elsewhere. boxes: page and box of each block of it."""

    page: int
    regions: tuple[Found, ...]
    boxes: tuple[tuple[int, Corners], ...]

    @property
    def text(self) -> str:
        return joined([region.text for region in self.regions])

    @property
    def box(self) -> Corners:
        """On its first page."""
        return union([box for page, box in self.boxes if page == self.page])

    @property
    def number(self) -> str:
        """ "3-2" of "FIGURE 3–2 Normal colon"; "" where there is none."""  # noqa: RUF002
        found = CAPTION.match(self.text)
        return number(found["number"]) + (found["panel"] or "") if found else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A figure, a caption, or both. side: where the caption is; cost: 0 = as near as can be."""

    page: int
    figure: Corners | None
    lines: tuple[Word, ...]
    caption: Caption | None
    side: str = ""
    cost: float | None = None


def number(text: str) -> str:
    """A figure's number in one way of writing: "3 – 2" -> "3-2", "12.4" stays."""  # noqa: RUF002
    return "".join("-" if letter in "‐‑–—-" else letter for letter in text if not letter.isspace())  # noqa: RUF001


def match(pages: Mapping[int, PageFound], *, max_distance: float, across_pages: bool) -> list[Match]:
    """All figures and captions of the pages, matched where they can be, in the order of the pages."""
    captions = _captions(pages)
    found: dict[int, list[Match]] = {
        number: _on_page(page, captions.get(number, []), max_distance) for number, page in sorted(pages.items())
    }
    if across_pages:
        _across(found, pages)
    return [each for matches in found.values() for each in matches]


def _captions(pages: Mapping[int, PageFound]) -> dict[int, list[Caption]]:
    """The captions of each page, with the blocks that go on beside them or on the next page."""
    found: dict[int, list[Caption]] = {}
    for page in pages.values():
        for region in page.regions:
            if region.kind == "caption":
                more = _beside(region, page)
                regions, boxes = [region, *more], [(page.page, each.box) for each in (region, *more)]
                following = _on_next_page(regions[-1], page, pages.get(page.page + 1))
                if following is not None:
                    regions.append(following)
                    boxes.append((page.page + 1, following.box))
                made = Caption(page=page.page, regions=tuple(regions), boxes=tuple(boxes))
                found.setdefault(page.page, []).append(made)
    return found


def _beside(caption: Found, page: PageFound) -> list[Found]:
    """The block right of a caption that is set in two columns: level with it, of its size, and it is not at its end."""
    if caption.text.endswith(_ENDS):
        return []
    height = caption.lines[0].box[3] - caption.lines[0].box[1] if caption.lines else 0.0
    for other in page.regions:
        level = abs(other.box[1] - caption.box[1]) < 1.5 * height and other.box[0] >= caption.box[2]
        if other.kind == "text" and level and _same_size(other, caption):
            return [other]
    return []


def _on_next_page(caption: Found, page: PageFound, following: PageFound | None) -> Found | None:
    """The block at the head of the next page that a caption goes on in, which is cut off at the foot of its own."""
    if following is None or caption.text.endswith(_ENDS) or caption.box[3] < 0.7 * page.height:
        return None
    for region in following.regions:
        if region.kind == "other":
            continue
        body = [line.size for each in following.regions if each.kind == "text" for line in each.lines]
        unlike_body = bool(body) and abs(region.size - median(body)) > 0.03 * median(body)
        goes_on = region.kind == "text" and region.box[1] < 0.3 * following.height and _same_size(region, caption)
        return region if goes_on and (unlike_body or region.text[:1].islower()) else None
    return None


def _same_size(one: Found, other: Found) -> bool:
    return abs(one.size - other.size) <= 0.06 * max(one.size, other.size)


def _on_page(page: PageFound, captions: Sequence[Caption], max_distance: float) -> list[Match]:
    """The matches of one page; with those, figures and captions that are left."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    figures = [region for region in page.regions if region.kind == "figure"]
    # A column for each caption, and one for each figure in which it stays without.
    costs = np.full((len(figures), len(captions) + len(figures)), max_distance)
    sides: dict[tuple[int, int], str] = {}
    for row, figure in enumerate(figures):
        for column, caption in enumerate(captions):
            side, cost = _cost(figure, caption, page)
            sides[row, column] = side
            costs[row, column] = cost if cost < max_distance else 1e6
    pairs = {}
    if figures:
        rows, columns = linear_sum_assignment(costs)
        pairs = {int(row): int(column) for row, column in zip(rows, columns, strict=True) if column < len(captions)}
    boxes, lines = _with_parts(figures, pairs, costs, page, max_distance)
    found = [
        Match(
            page=page.page,
            figure=boxes[row],
            lines=lines[row],
            caption=captions[pairs[row]] if row in pairs else None,
            side=sides[row, pairs[row]] if row in pairs else "",
            cost=float(costs[row, pairs[row]]) if row in pairs else None,
        )
        for row in range(len(figures))
        if row in boxes
    ]
    left = [caption for place, caption in enumerate(captions) if place not in pairs.values()]
    return [*found, *(Match(page=page.page, figure=None, lines=(), caption=caption) for caption in left)]


def _with_parts(
    figures: Sequence[Found], pairs: Mapping[int, int], costs: object, page: PageFound, max_distance: float
) -> tuple[dict[int, Corners], dict[int, tuple[Word, ...]]]:
    """Boxes and lines of the figures by place; a part that a detector has taken for a figure of its own is joined.

    That is one without a caption, beside or over a figure whose caption it would have as well.
    """
    import numpy as np

    matrix = np.asarray(costs)
    boxes = {row: figure.box for row, figure in enumerate(figures)}
    lines = {row: tuple(figure.lines) for row, figure in enumerate(figures)}
    near = PARTS_APART * page.height
    for row, figure in enumerate(figures):
        if row in pairs:
            continue
        for other, caption in pairs.items():
            apart = max(-overlap(figure.box, boxes[other], 0), -overlap(figure.box, boxes[other], 1))
            both = union([figure.box, boxes[other]])
            free = not any(_covers(both, each.box) for each in page.regions if each.kind != "figure")
            reaches = matrix[row, caption] < max_distance + BETWEEN or apart <= near
            if apart <= near and free and reaches:
                boxes[other], lines[other] = both, (*lines[other], *lines[row])
                del boxes[row]
                break
    return boxes, lines


def _covers(around: Corners, box: Corners) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return around[0] < x < around[2] and around[1] < y < around[3]


def _cost(figure: Found, caption: Caption, page: PageFound) -> tuple[str, float]:
    """Where the caption is, and what the match costs: distance of the page's height, and what speaks against it."""
    one, other = figure.box, caption.box
    gaps = {
        "below": (other[1] - one[3], 0),
        "above": (one[1] - other[3], 0),
        "beside": (max(other[0] - one[2], one[0] - other[2]), 1),
    }
    best = ("", 1e6)
    for side, (gap, axis) in gaps.items():
        shared = overlap(one, other, axis) / max(min(one[axis + 2] - one[axis], other[axis + 2] - other[axis]), 1.0)
        if gap < -0.02 * page.height or shared <= 0:
            continue
        cost = max(gap, 0.0) / page.height + MISALIGNED * (1 - min(shared, 1.0)) + SIDES[side]
        if _is_between(one, other, figure, caption, page):
            cost += BETWEEN
        if cost < best[1]:
            best = (side, cost)
    return best


def _is_between(one: Corners, other: Corners, figure: Found, caption: Caption, page: PageFound) -> bool:
    """Whether the middle of a region lies between the two, in the strip that both share."""
    own = {figure.id, *(region.id for region in caption.regions)}
    x = (max(one[0], other[0]), min(one[2], other[2]))
    y = (max(one[1], other[1]), min(one[3], other[3]))
    strip = (min(x), min(y), max(x), max(y))
    if x[0] < x[1]:  # over each other: the strip runs from one to the other
        strip = (x[0], min(one[3], other[3]), x[1], max(one[1], other[1]))
    elif y[0] < y[1]:
        strip = (min(one[2], other[2]), y[0], max(one[0], other[0]), y[1])
    return any(_covers(strip, region.box) for region in page.regions if region.id not in own)


def _across(found: dict[int, list[Match]], pages: Mapping[int, PageFound]) -> None:
    """Pairs figures and captions that are left on pages that follow each other: those that are each other's nearest."""
    figures = {
        (page, place): each
        for page, matches in found.items()
        for place, each in enumerate(matches)
        if each.caption is None
    }
    captions = {
        (page, place): each
        for page, matches in found.items()
        for place, each in enumerate(matches)
        if each.figure is None
    }
    costs: dict[tuple[tuple[int, int], tuple[int, int]], float] = {}
    for one, figure in figures.items():
        for other, caption in captions.items():
            if abs(one[0] - other[0]) == 1:
                cost = _cost_across(figure, caption, pages)
                if cost <= ACROSS:
                    costs[one, other] = cost
    ranked = sorted(costs, key=lambda pair: (costs[pair], pair[0] > pair[1], pair))
    first_of_figure = {pair[0]: pair for pair in reversed(ranked)}
    first_of_caption = {pair[1]: pair for pair in reversed(ranked)}
    taken: set[tuple[int, int]] = set()
    for pair in ranked:
        if first_of_figure[pair[0]] == pair == first_of_caption[pair[1]]:
            (page, place), other = pair
            side = "next_page" if other[0] > page else "previous_page"
            found[page][place] = replace(
                figures[page, place], caption=captions[other].caption, side=side, cost=costs[pair]
            )
            taken.add(other)
    for page, matches in found.items():
        found[page] = [each for place, each in enumerate(matches) if (page, place) not in taken]


def _cost_across(figure: Match, caption: Match, pages: Mapping[int, PageFound]) -> float:
    assert figure.figure is not None
    assert caption.caption is not None
    box, other = figure.figure, caption.caption.box
    if caption.page > figure.page:
        return (pages[figure.page].height - box[3]) / pages[figure.page].height + other[1] / pages[caption.page].height
    gap = box[1] / pages[figure.page].height + (pages[caption.page].height - other[3]) / pages[caption.page].height
    return gap + SIDES["above"]
