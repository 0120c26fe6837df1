"""Figures and captions, one to one."""

from __future__ import annotations

from pathor1.curation.matching import Found, Match, PageFound, match, number
from pathor1.curation.pdf import Corners, Word


def region(kind: str, box: Corners, text: str = "", size: float = 8.0) -> Found:
    lines = (Word(text=text, box=box, size=size),) if text else ()
    return Found(id=f"{kind}{box}", kind=kind, box=box, place=0, text=text, lines=lines, text_from="pdf")


def page(number: int, *regions: Found) -> PageFound:
    return PageFound(page=number, width=1000, height=1000, regions=regions)


def matched(*pages: PageFound, across: bool = True) -> dict[Corners | None, str]:
    """The figure's box -> its caption, whole."""
    found = match({each.page: each for each in pages}, max_distance=0.15, across_pages=across)
    return {each.figure: each.caption.text if each.caption else "" for each in found}


UPPER, LOWER = (100.0, 100.0, 400.0, 300.0), (100.0, 400.0, 400.0, 600.0)


def test_the_pairs_that_are_nearest_in_all_are_taken() -> None:
    # The caption between the two is as near to the lower figure; but the lower one has its own.
    one = region("caption", (100, 345, 400, 365), "Figure 1 Upper.")
    two = region("caption", (100, 610, 400, 630), "Figure 2 Lower.")
    found = matched(page(1, region("figure", UPPER), one, region("figure", LOWER), two))
    assert found == {UPPER: "Figure 1 Upper.", LOWER: "Figure 2 Lower."}
    # And where captions stand above, the same one is the lower figure's.
    top = region("caption", (100, 70, 400, 90), "Figure 1 Upper.")
    mid = region("caption", (100, 345, 400, 365), "Figure 2 Lower.")
    assert matched(page(1, top, region("figure", UPPER), mid, region("figure", LOWER))) == found


def test_a_figure_of_another_column_or_far_away_has_no_caption() -> None:
    caption = region("caption", (600, 310, 900, 330), "Figure 1 Other column.")
    assert matched(page(1, region("figure", UPPER), caption)) == {UPPER: "", None: "Figure 1 Other column."}
    caption = region("caption", (100, 700, 400, 720), "Figure 1 Far below.")
    assert matched(page(1, region("figure", UPPER), caption)) == {UPPER: "", None: "Figure 1 Far below."}


def test_text_in_between_speaks_against_a_match() -> None:
    caption = region("caption", (100, 400, 400, 420), "Figure 1 Below the text.")
    text = region("text", (100, 320, 400, 390), "Body text of the page.", 10)
    assert matched(page(1, region("figure", UPPER), text, caption))[UPPER] == ""
    assert matched(page(1, region("figure", UPPER), caption))[UPPER] == "Figure 1 Below the text."


def test_a_part_that_was_taken_for_a_figure_is_joined() -> None:
    left, right = (100.0, 100.0, 240.0, 300.0), (260.0, 100.0, 400.0, 300.0)
    caption = region("caption", (100, 310, 400, 330), "Figure 1 Both.")
    assert matched(page(1, region("figure", left), region("figure", right), caption)) == {UPPER: "Figure 1 Both."}


def test_a_caption_of_two_columns_and_one_that_goes_on_overleaf_are_whole() -> None:
    one = region("caption", (100, 310, 240, 330), "Figure 1 Begins here and")
    two = region("text", (260, 310, 400, 330), "ends here.")
    assert matched(page(1, region("figure", UPPER), one, two)) == {UPPER: "Figure 1 Begins here and ends here."}
    low = (100.0, 650.0, 400.0, 850.0)
    cut = region("caption", (100, 860, 400, 950), "Figure 1 Begins here and")
    head = region("other", (100, 20, 400, 30), "CHAPTER 1")
    rest = region("text", (100, 60, 400, 80), "ends overleaf.")
    body = region("text", (100, 100, 400, 900), "Body text of the page.", 10)
    pages = page(1, region("figure", low), cut), page(2, head, rest, body)
    (found,) = match({each.page: each for each in pages}, max_distance=0.15, across_pages=True)
    assert found.caption is not None
    assert found.caption.text == "Figure 1 Begins here and ends overleaf."
    assert found.caption.boxes == ((1, cut.box), (2, rest.box))
    # A caption that is at its end does not go on.
    ended = region("caption", (100, 860, 400, 950), "Figure 1 Ends here.")
    assert matched(page(1, region("figure", low), ended), page(2, head, rest, body)) == {low: "Figure 1 Ends here."}


def test_a_caption_overleaf_is_the_nearest_figures_that_has_none() -> None:
    whole = (50.0, 50.0, 950.0, 950.0)
    after = region("caption", (100, 60, 400, 80), "Figure 2 Overleaf.")
    own = region("figure", (100.0, 400.0, 400.0, 600.0))
    of_own = region("caption", (100, 610, 400, 630), "Figure 3 Here.")
    pages = page(1, region("figure", whole)), page(2, after, own, of_own)
    assert matched(*pages) == {whole: "Figure 2 Overleaf.", own.box: "Figure 3 Here."}
    assert matched(*pages, across=False)[whole] == ""
    found = match({each.page: each for each in pages}, max_distance=0.15, across_pages=True)
    assert [(each.page, each.side) for each in found] == [(1, "next_page"), (2, "below")]
    before = region("caption", (100, 920, 400, 940), "Figure 2 Before.")
    found = match({3: page(3, before), 4: page(4, region("figure", whole))}, max_distance=0.15, across_pages=True)
    assert [(each.page, each.side, said(each)) for each in found] == [(4, "previous_page", "Figure 2 Before.")]


def said(each: Match) -> str:
    return each.caption.text if each.caption else ""


def test_numbers_are_written_in_one_way() -> None:
    assert number("3 \N{EN DASH} 2") == "3-2"
    assert number("12.4") == "12.4"
    caption = region("caption", (100, 310, 400, 330), "FIGURE 3\N{EN DASH}2B Colon.")
    (found,) = match({1: page(1, region("figure", UPPER), caption)}, max_distance=0.15, across_pages=True)
    assert found.caption is not None
    assert found.caption.number == "3-2B"
