"""What curation reads in a book's text: captions and their parts, mentions of figures, sentences, lines, order."""

from __future__ import annotations

import pytest

from pathor1.curation.caption_parts import labels_in, parse
from pathor1.curation.lines import blocks, is_caption, joined, of_words, reading_order
from pathor1.curation.mentions import find, sentences
from pathor1.curation.pdf import Word


@pytest.mark.parametrize(
    ("text", "mention", "targets"),
    [
        ("The glands (Fig. 1-1).", "Fig. 1-1", "1-1"),
        ("as in Fig. 3-2B, which", "Fig. 3-2B", "3-2:B"),
        ("as in Fig. 1-2, B and C, which are slower", "Fig. 1-2, B and C", "1-2:BC"),
        ("(Fig. 1-2, B)", "Fig. 1-2, B", "1-2:B"),
        ("see Fig. 1-2, a thing", "Fig. 1-2", "1-2"),
        ("Figures 1-2 to 1-4 show", "Figures 1-2 to 1-4", "1-2 1-3 1-4"),
        ("in Figs. 2 and 4", "Figs. 2 and 4", "2 4"),
        ("Figures 3 to 5", "Figures 3 to 5", "3 4 5"),
        ("Figs. 3-1\N{EN DASH}3-3", "Figs. 3-1\N{EN DASH}3-3", "3-1 3-2 3-3"),
        ("FIGURE 12\N{EN DASH}4", "FIGURE 12\N{EN DASH}4", "12-4"),
        ("Fig. 3-2A-C; see", "Fig. 3-2A-C", "3-2:ABC"),
        ("Figs. 3-1A, B, and 3-2", "Figs. 3-1A, B, and 3-2", "3-1:AB 3-2"),
        ("figure 1-3 shows", "figure 1-3", "1-3"),
        ("Fig. 12.4a and b", "Fig. 12.4a and b", "12-4:AB"),
        ("Figure 2 a lesion", "Figure 2", "2"),
        ("Fig. 5A and a lesion", "Fig. 5A", "5:A"),
        ("Figs 1-1, 1-2, and 1-3", "Figs 1-1, 1-2, and 1-3", "1-1 1-2 1-3"),
        ("Fig. 3-\n2", "Fig. 3-\n2", "3-2"),
        ("Figure 4, A cell is", "Figure 4", "4"),
        ("Fig. 1-2 (A)", "Fig. 1-2 (A)", "1-2:A"),
    ],
)
def test_mentions(text: str, mention: str, targets: str) -> None:
    (found,) = find(text)
    assert text[found.start : found.end] == mention
    said = [f"{'-'.join(each.number)}{':' if each.panels else ''}{''.join(each.panels)}" for each in found.targets]
    assert said == targets.split()


@pytest.mark.parametrize("text", ["no configuration 5", "it figures 5 times over", "Table 3-2", "figured", "Fig. A"])
def test_what_is_no_mention(text: str) -> None:
    assert [text[each.start : each.end] for each in find(text) if "figures 5" not in text] == []


def test_a_number_that_may_be_a_range_is_told_as_both() -> None:
    (found,) = find("Figures 3-5 are")
    assert [each.number for each in found.targets] == [("3", "5")]
    assert [each.number for each in found.or_range] == [("3",), ("4",), ("5",)]


def test_sentences_do_not_end_at_abbreviations() -> None:
    text = "Nuclei decide (see Fig. 1-5). Compare e.g. Dr. Who et al. 1999 (Figs. 1 and 4). \u201cQuoted.\u201d Next"
    assert [text[start:end] for start, end in sentences(text)] == [
        "Nuclei decide (see Fig. 1-5).",
        "Compare e.g. Dr. Who et al. 1999 (Figs. 1 and 4).",
        "\u201cQuoted.\u201d",
        "Next",
    ]


def test_long_texts_take_time_in_proportion() -> None:
    text = "Fig. 1, " * 100_000  # a second; what is not linear does not end within the time limit of a test
    assert len(sentences(text)) == 1
    assert sum(1 for _ in find(text)) == 100_000


PARTS = {
    "Figure 1-2 Faces. A, Neutrophils. B, Plasma cells. (A and B, hematoxylin.)": (
        "Faces.", {"A": "Neutrophils.", "B": "Plasma cells."}, "(A and B, hematoxylin.)",
    ),
    "Fig. 5 Two tumors. Left: papillary. Right: follicular.": (
        "Two tumors.", {"left": "papillary.", "right": "follicular."}, "",
    ),
    "Figure 1-6 Colon. (A) Glands. (B) Mucin.": ("Colon.", {"A": "Glands.", "B": "Mucin."}, ""),
    "Fig. 12.4 Colitis with an abscess (A) and a granuloma (B). Hematoxylin.": (
        "Hematoxylin.", {"A": "Colitis with an abscess", "B": "a granuloma"}, "",
    ),
    "FIGURE 3\N{EN DASH}2 \u25a0 Lung. (a) Low; (b) high; (c, d) stains.": (
        "Lung.", {"A": "Low;", "B": "high;", "C": "stains.", "D": "stains."}, "",
    ),
    "Figure 2.3: A and B, Gross. C, Microscopic.": ("", {"A": "Gross.", "B": "Gross.", "C": "Microscopic."}, ""),
    "Figure 7 Upper left: one. Upper right: two. Lower panel: three.": (
        "", {"upper left": "one.", "upper right": "two.", "lower": "three."}, "",
    ),
    "Figure 5-1 Vitamin A and B deficiency. Grade C, or so.": (
        "Vitamin A and B deficiency. Grade C, or so.", {}, "",
    ),
    "Figure 9 Hepatitis. B, is what it was called.": ("Hepatitis. B, is what it was called.", {}, ""),
}  # fmt: skip


@pytest.mark.parametrize("caption", PARTS, ids=lambda caption: caption[:16])
def test_captions_in_parts(caption: str) -> None:
    found = parse(caption)
    assert (found.intro, found.parts, found.tail) == PARTS[caption]


def test_a_panel_has_what_is_said_of_all_and_of_it() -> None:
    found = parse("Figure 1 Faces. A, Neutrophils. B, Plasma cells. (A and B, hematoxylin.)")
    assert found.of("B") == "Faces. Plasma cells. (A and B, hematoxylin.)"
    assert found.of("") == "Faces. Neutrophils. Plasma cells. (A and B, hematoxylin.)"
    assert labels_in("B to D") == ["B", "C", "D"]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Figure 3-2 Normal colon", True),
        ("FIG. 12.4. Colitis", True),
        ("Fig. 3", True),
        ("Figure 3-2 shows that", False),
        ("Figures 3 and 4 Show", False),
        ("see Figure 3-2 Normal", False),
        ("Table 3-2 Normal", False),
    ],
)
def test_a_caption_begins_with_its_label(text: str, is_one: bool) -> None:
    assert is_caption(text) is is_one


def word(text: str, x: float, y: float, size: float = 10) -> Word:
    return Word(text=text, box=(x, y, x + 6 * len(text), y + 12), size=size)


def test_lines_stay_within_their_column_and_a_label_keeps_its_text() -> None:
    words = [word("left", 0, 0), word("one", 30, 0.5), word("right", 120, 0), word("two", 156, 0), word("below", 0, 15)]
    assert [line.text for line in of_words(words)] == ["left one", "right two", "below"]
    words = [word("Figure", 0, 0), word("3-2", 40, 0), word("Colon", 95, 0)]
    assert [line.text for line in of_words(words)] == ["Figure 3-2 Colon"]


def test_blocks_end_where_the_size_or_the_gap_is_another() -> None:
    lines = [
        word("body text of a line", 0, 0),
        word("goes on", 0, 14),
        word("small print under it", 0, 28, size=8),
        word("far below", 0, 70, size=8),
        word("Figure 2 Caption", 0, 84, size=8),
    ]
    found = blocks(lines, ocr=False)
    assert [block.text for block in found] == [
        "body text of a line goes on",
        "small print under it",
        "far below",
        "Figure 2 Caption",
    ]


def test_divided_words_are_whole_again() -> None:
    assert joined(["a carci-", "noma of the B-", "Cell kind, Fig. 3-", "2 of them"]) == (
        "a carcinoma of the B- Cell kind, Fig. 3-2 of them"
    )


def test_columns_come_one_after_the_other_and_what_spans_them_between() -> None:
    boxes = [
        (0, 0, 100, 10),  # a title over both
        (52, 12, 100, 40),
        (0, 12, 48, 30),
        (0, 50, 100, 70),  # a figure over both
        (52, 80, 100, 90),
        (0, 32, 48, 40),
        (0, 80, 48, 90),
    ]
    assert reading_order(boxes) == [0, 2, 5, 1, 3, 6, 4]
    many = [(0, place, 50 + place % 7, place + 0.5) for place in range(3000)]
    assert sorted(reading_order(many)) == list(range(3000))
