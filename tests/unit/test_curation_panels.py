"""Composite figures into panels, their labels, and a model's say on them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from textbook import cell, composite, tissue

from pathor1.curation.caption_parts import parse
from pathor1.curation.labelling import Labelled, Panel, label
from pathor1.curation.panel_model import Answer, answer, compared
from pathor1.curation.pdf import Corners, Word
from pathor1.curation.splitting import split

SIZE = (900, 600)
GUTTER = 14


def cut(figure: Image.Image, expected: int = 1) -> list[list[int]]:
    found = split(figure, min_gutter=0.006, min_panel=0.08, expected=expected)
    return [[round(value) for value in box] for box in found]


def cells(columns: int, rows: int, gutter: float = GUTTER) -> list[list[int]]:
    boxes = [cell(columns, rows, size=SIZE, gutter=gutter, place=place) for place in range(columns * rows)]
    return [[round(value) for value in box] for box in boxes]


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2)])
def test_panels_between_gutters(columns: int, rows: int) -> None:
    found = cut(composite(columns, rows, size=SIZE, gutter=GUTTER, labels="ABCDEF", seed=3))
    assert np.abs(np.array(found) - np.array(cells(columns, rows))).max() <= 2


def test_panels_of_different_sizes_are_read_row_by_row() -> None:
    figure = Image.new("RGB", SIZE, "white")
    boxes = [(0, 0, 900, 280), (0, 300, 300, 600), (320, 300, 600, 440), (320, 460, 600, 600), (620, 300, 900, 600)]
    for seed, box in enumerate(boxes):
        figure.paste(tissue(box[2] - box[0], box[3] - box[1], seed), box[:2])
    found = cut(figure)
    assert sorted(found) == sorted(list(box) for box in boxes)
    assert found[0] == [0, 0, 900, 280]


def test_black_gutters_and_a_white_frame() -> None:
    figure = Image.new("RGB", (960, 660), "white")
    inner = Image.new("RGB", SIZE, "black")
    for place, (left, top, right, bottom) in enumerate(cells(2, 1)):
        inner.paste(tissue(right - left, bottom - top, place), (left, top))
    figure.paste(inner, (30, 30))
    assert cut(figure) == [[30, 30, 473, 630], [487, 30, 930, 630]]


def test_pieces_of_tissue_on_white_glass_are_one_picture() -> None:
    figure = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(figure)
    for x in (60, 340, 620):
        draw.ellipse((x, 120, x + 220, 480), fill=(220, 150, 190))
    assert len(cut(figure, expected=1)) == 1


def test_panels_that_touch_are_parted_at_their_edge_where_the_caption_names_them() -> None:
    figure = Image.new("RGB", SIZE)
    figure.paste(tissue(450, 600, 1), (0, 0))
    figure.paste(tissue(450, 600, 2, dark=True), (450, 0))
    assert cut(figure, expected=1) == [[0, 0, 900, 600]]
    assert cut(figure, expected=2) == [[0, 0, 450, 600], [450, 0, 900, 600]]
    # No edge is made up where there is none.
    assert cut(tissue(900, 600, 4), expected=2) == [[0, 0, 900, 600]]


def test_small_and_empty_figures_are_one_panel() -> None:
    assert cut(Image.new("RGB", (300, 200), "white"), expected=2) == [[0, 0, 300, 200]]
    assert cut(Image.new("RGB", (1, 1)), expected=4) == [[0, 0, 1, 1]]
    assert cut(Image.new("RGB", (4000, 3), "black")) == [[0, 0, 4000, 3]]


class Letters:
    """A reader that sees a letter where its colour is."""

    name = "letters"

    def __init__(self, letters: dict[tuple[int, int, int], str]) -> None:
        self.letters = letters

    def lines(self, picture: Image.Image, dpi: float) -> list[Word]:
        text = self.letters.get(picture.getpixel((2, 2)), "")
        return [Word(text=text, box=(0, 0, 9, 9), size=9)] if text else []


BOXES: list[Corners] = [(0, 0, 443, 600), (457, 0, 900, 600)]
RED, BLUE = (255, 0, 0), (0, 0, 255)


def labelled(
    wanted: str | list[str], *, lines: list[Word] | None = None, letters: dict[tuple[int, int, int], str] | None = None
) -> Labelled:
    figure = Image.new("RGB", SIZE, RED)
    figure.paste(BLUE, (450, 0, 900, 600))
    reader = Letters(letters) if letters is not None else None
    return label(BOXES, list(wanted), figure=figure, lines=lines or [], text_from="pdf", reader=reader, dpi=200)


def said(found: Labelled) -> list[tuple[str, str]]:
    return [(panel.label, panel.label_from) for panel in found.panels]


def test_letters_of_the_text_layer_come_first_then_those_that_are_read() -> None:
    a = Word(text="A", box=(10, 560, 22, 590), size=12)
    found = labelled("AB", lines=[a], letters={BLUE: "(b)"})
    assert said(found) == [("A", "text"), ("B", "ocr")]
    assert found.review == ""


def test_labels_out_of_order_and_those_that_nobody_could_read_want_a_look() -> None:
    found = labelled("AB", letters={RED: "B", BLUE: "A"})
    assert said(found) == [("B", "ocr"), ("A", "ocr")]
    assert found.review == "the labels are not in order: B, A"
    found = labelled("AB", letters={})
    assert said(found) == [("A", "order"), ("B", "order")]
    assert found.review == "no label could be read in the picture; they are given in order"
    assert labelled("AB", letters={RED: "A"}).review == ""


def test_a_figure_stays_whole_where_picture_and_caption_do_not_agree() -> None:
    found = labelled("ABC")
    assert said(found) == [("", "")]
    assert found.panels[0].box == (0, 0, 900, 600)
    assert found.review == "the caption names 3 panels, and 2 are found"
    assert labelled("").review == "2 panels are found, and the caption names none"


def test_positions() -> None:
    assert said(labelled(["left", "right"])) == [("left", "position"), ("right", "position")]
    found = labelled(["top", "bottom"])
    assert said(found) == [("", "")]
    assert found.review == "0 panels are found that may be the one: top"


WHOLE = Labelled(
    panels=(Panel(label="", box=(0, 0, 900, 600), label_from=""),), review="the caption names 2, 1 is found"
)
TWO = Labelled(
    panels=tuple(Panel(label=name, box=box, label_from="order") for name, box in zip("AB", BOXES, strict=True)),
    review="no label could be read in the picture; they are given in order",
)


def reply(**boxes: list[float]) -> Answer:
    panels = [{"label": name, "box": box} for name, box in boxes.items()]
    return answer(json.dumps({"panels": panels}), SIZE, "model")


def test_a_model_that_agrees_lifts_a_doubt_and_one_that_does_not_calls_a_person() -> None:
    same = reply(A=[0, 0, 492, 1000], B=[508, 0, 1000, 1000])
    assert compared(TWO, same, ["A", "B"]).review == ""
    other = reply(A=[0, 0, 200, 1000], B=[508, 0, 1000, 1000])
    assert compared(TWO, other, ["A", "B"]).review.endswith("; the model's boxes are others")
    three = reply(A=[0, 0, 300, 1000], B=[300, 0, 600, 1000], C=[600, 0, 1000, 1000])
    found = compared(TWO, three, ["A", "B"])
    assert found.review.endswith("the model has other panels: A, B, C")
    assert found.panels == TWO.panels


def test_a_model_that_has_the_captions_panels_is_believed_and_looked_at() -> None:
    found = compared(WHOLE, reply(A=[0, 0, 500, 1000], B=[500, 0, 1000, 1000]), ["A", "B"])
    assert [(panel.label, panel.box, panel.label_from) for panel in found.panels] == [
        ("A", (0, 0, 450, 600), "model"),
        ("B", (450, 0, 900, 600), "model"),
    ]
    assert found.review == "the caption names 2, 1 is found; the panels are the model's"


@pytest.mark.parametrize(
    "text",
    [
        "", "no JSON", "[]", "{}", '{"panels": []}', '{"panels": [{"label": "A"}]}', '{"panels": 3}',
        '{"panels": [{"label": "A", "box": [0, 0, 5]}]}', '{"panels": [{"label": "A", "box": [5, 0, 1, 9]}]}',
        '{"panels": [{"label": "A", "box": [0, 0, 1001, 9]}]}', '{"panels": [{"label": "A", "box": ["x", 0, 1, 9]}]}',
        '{"panels": [{"label": "A", "box": [0, 0, NaN, 9]}]}',
    ],
)  # fmt: skip
def test_a_reply_that_is_not_as_asked_for_is_no_guess(text: str) -> None:
    found = answer(text, SIZE, "model")
    assert found.panels == ()
    assert found.problem.startswith("the model's reply is not as asked for")
    assert compared(TWO, found, ["A", "B"]).panels == TWO.panels


def test_the_panels_of_a_caption_are_wanted_in_its_order() -> None:
    assert list(parse("Figure 1 Two. A, One. B, Other.").parts) == ["A", "B"]
