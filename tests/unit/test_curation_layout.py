"""Detectors of what is where on a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from textbook import tissue

from pathor1.curation import detectors
from pathor1.curation.classical import Classical, _merged
from pathor1.curation.detectors import PageInput, Region, TransformersDetector, of_boxes
from pathor1.curation.docling import read
from pathor1.curation.layout import captioned
from pathor1.curation.lines import of_words, reading_order
from pathor1.curation.ocr import _of_tsv
from pathor1.curation.pdf import Word
from pathor1.curation.recipe import LayoutSettings
from pathor1.errors import DataError, ModelError

DPI = 200


def line(text: str, x: float, y: float, *, size: float = 10, width: float = 0) -> Word:
    return Word(text=text, box=(x, y, x + (width or 13.0 * len(text)), y + 28), size=size)


def page(picture: Image.Image, *lines: Word, pictures: tuple[tuple[float, float, float, float], ...] = ()) -> PageInput:
    return PageInput(
        source="Atlas 1.pdf", number=2, picture=picture, dpi=DPI, lines=lines, ocr=False, pictures=pictures
    )


def kinds(found: list[Region]) -> list[tuple[str, list[int]]]:
    return sorted((each.kind, [round(value) for value in each.box]) for each in found)


def test_a_picture_on_a_scan_is_a_figure_to_the_pixel() -> None:
    picture = Image.new("RGB", (1700, 2200), (246, 244, 240))
    picture.paste(tissue(603, 402, 1), (301, 501))
    found = Classical().regions(page(picture))
    ((kind, box),) = kinds(found)
    assert kind == "figure"
    assert max(abs(one - other) for one, other in zip(box, (301, 501, 904, 903), strict=True)) <= 2


def test_tinted_boxes_with_text_and_rules_are_no_figures() -> None:
    picture = Image.new("RGB", (1700, 2200), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((100, 100, 800, 500), fill=(200, 220, 240))
    draw.rectangle((100, 700, 1600, 704), fill="black")
    draw.rectangle((100, 900, 900, 1400), outline="black", width=4)
    text = [line("a line of text in a box that is full of text", 120, 110 + 34 * row) for row in range(11)]
    assert {each.kind for each in Classical().regions(page(picture, *text))} == {"text"}


def test_pictures_near_each_other_are_one_figure_and_those_with_text_between_are_two() -> None:
    picture = Image.new("RGB", (1700, 2200), "white")
    boxes = ((100.0, 100.0, 500.0, 400.0), (515.0, 100.0, 900.0, 400.0), (100.0, 440.0, 500.0, 800.0))
    between = line("Figure 1 Caption between.", 100, 405)
    found = Classical().regions(page(picture, between, pictures=boxes))
    assert kinds(found) == [
        ("caption", [100, 405, 425, 433]),
        ("figure", [100, 100, 900, 400]),
        ("figure", [100, 440, 500, 800]),
    ]


def test_letters_in_a_figure_are_its_own() -> None:
    picture = Image.new("RGB", (1700, 2200), "white")
    letter = line("A", 110, 110)
    found = Classical().regions(page(picture, letter, pictures=((100.0, 100.0, 500.0, 400.0),)))
    assert [(each.kind, [word.text for word in each.lines]) for each in found] == [("figure", ["A"])]


corners = st.tuples(*[st.floats(0, 300)] * 4).map(
    lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
)
words = st.builds(
    Word, text=st.sampled_from(["Figure 1", "a", "Table 2", "-", "Fig. 3 A"]), box=corners, size=st.floats(0, 99)
)


@given(st.lists(words, max_size=25), st.lists(corners, max_size=6), st.integers(0, 3))
@settings(max_examples=60)
def test_no_page_takes_it_down(found: list[Word], pictures: list[tuple[float, ...]], seed: int) -> None:
    picture = tissue(300, 280, seed) if seed else Image.new("RGB", (300, 280), "black")
    lines = of_words(found)
    assert sum(len(line.text.split()) for line in lines) == sum(len(word.text.split()) for word in found)
    regions = Classical().regions(page(picture, *lines, pictures=tuple(pictures)))
    assert sum(len(region.lines) for region in regions) == len(lines)
    assert sorted(reading_order([region.box for region in regions])) == list(range(len(regions)))


def test_a_models_boxes_become_regions_each_line_in_one() -> None:
    picture = Image.new("RGB", (1000, 1000), "white")
    lines = (line("Figure 1 Colon.", 100, 410), line("Body.", 100, 600))
    boxes = [
        ("Picture", (90.0, 100.0, 500.0, 400.0), 0.9),
        ("Picture", (95.0, 105.0, 500.0, 400.0), 0.5),  # the same again
        ("Caption", (90.0, 400.0, 500.0, 450.0), 0.8),
        ("Text", (90.0, 590.0, 1500.0, 640.0), 0.7),
        ("Page-footer", (90.0, 900.0, 500.0, 950.0), 0.7),
    ]
    found = of_boxes(boxes, page(picture, *lines))
    assert [(each.kind, each.score, [word.text for word in each.lines]) for each in found] == [
        ("figure", 0.9, []),
        ("caption", 0.8, ["Figure 1 Colon."]),
        ("text", 0.7, ["Body."]),
        ("other", 0.7, []),
    ]
    assert found[2].box == (90.0, 590.0, 1000.0, 640.0)


def test_a_detector_of_transformers_is_loaded_from_its_folder_and_run(tmp_path: Path) -> None:
    """The architecture of Docling's heron models, small and untrained: its boxes mean nothing, and they come."""
    import torch
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    names = {0: "Caption", 1: "Picture", 2: "Text", 3: "Page-header"}
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[16, 24, 32],
        encoder_hidden_dim=16,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=20,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_denoising=0,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    RTDetrForObjectDetection(config).save_pretrained(tmp_path)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    chosen = LayoutSettings(detector="transformers", weights=str(tmp_path), threshold=0.0)
    found = detectors.detector(chosen)
    assert isinstance(found, TransformersDetector)
    assert found.name.startswith(f"rt_detr {tmp_path.name}, transformers ")
    regions = found.regions(page(tissue(300, 400, 1)))
    assert 0 < len(regions) <= 20
    for region in regions:
        assert region.kind in ("caption", "figure", "text", "other")
        assert 0 <= region.box[0] < region.box[2] <= 300
        assert 0 <= region.box[1] < region.box[3] <= 400


def test_what_a_caption_is_is_said_by_its_first_line() -> None:
    def kind(before: str, text: str) -> str:
        return captioned(Region(kind=before, box=(0, 0, 9, 9), score=1, lines=(line(text, 0, 0),))).kind

    assert kind("text", "Figure 3-2 Colon.") == "caption"
    assert kind("text", "Figure 3-2 shows") == "text"
    assert kind("caption", "A caption without a number.") == "caption"
    assert kind("caption", "Table 3-2 Stages.") == "other"


def test_what_docling_has_found_is_taken_from_its_json(tmp_path: Path) -> None:
    def item(label: str, number: int, box: dict[str, object]) -> dict[str, object]:
        return {"label": label, "prov": [{"page_no": number, "bbox": box, "charspan": [0, 5]}]}

    document = {
        "schema_name": "DoclingDocument",
        "pages": {str(number): {"size": {"width": 500.0, "height": 1000.0}, "page_no": number} for number in (1, 2)},
        "texts": [
            item("caption", 2, {"l": 50, "t": 590, "r": 250, "b": 570, "coord_origin": "BOTTOMLEFT"}),
            item("section_header", 2, {"l": 50, "t": 100, "r": 250, "b": 120, "coord_origin": "TOPLEFT"}),
            item("text", 1, {"l": 50, "t": 590, "r": 250, "b": 570, "coord_origin": "BOTTOMLEFT"}),
        ],
        "pictures": [item("picture", 2, {"l": 50, "t": 800, "r": 250, "b": 600, "coord_origin": "BOTTOMLEFT"})],
    }
    (tmp_path / "Atlas 1.json").write_text(json.dumps(document), encoding="utf-8")
    found = detectors.detector(LayoutSettings(detector="docling_json", weights=str(tmp_path)))
    caption = line("Figure 1 Colon.", 110, 822)
    regions = found.regions(page(Image.new("RGB", (1000, 2000), "white"), caption))
    assert kinds(regions) == [
        ("caption", [100, 820, 500, 860]),
        ("figure", [100, 400, 500, 800]),
        ("title", [100, 200, 500, 240]),
    ]
    assert [word.text for each in regions if each.kind == "caption" for word in each.lines] == ["Figure 1 Colon."]


def test_a_page_of_dots_is_merged_in_time() -> None:
    dots = [(20.0 * n, 0.0, 20.0 * n + 15, 15.0) for n in range(600)]
    apart = [(20.0 * n, 200.0, 20.0 * n + 2, 202.0) for n in range(600)]
    assert _merged([*apart, *reversed(dots)], 8.0, []) == [*apart, (0.0, 0.0, 20.0 * 599 + 15, 15.0)]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"pages": {"2": {}}, "texts": [{"prov": [{"page_no": 2}]}]}'])
def test_other_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "Atlas 1.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"Atlas 1.json: (not JSON|is no document of Docling's)"):
        read(tmp_path / "Atlas 1.json")
    with pytest.raises(DataError, match=r"Atlas.json: no such file; Docling's JSON of a book has the PDF's name"):
        read(tmp_path / "Atlas.json")


def test_weights_and_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    chosen = LayoutSettings(detector="transformers", weights=str(tmp_path))
    with pytest.raises(ModelError, match=r"no config.json there; layout.weights is the folder of an object detector"):
        detectors.detector(chosen)
    with pytest.raises(ModelError, match="doclayout-yolo is not installed, and not by pathor1"):
        detectors.named(LayoutSettings(detector="doclayout_yolo", weights=str(tmp_path)))


def test_tesseracts_table_of_words() -> None:
    head = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n"
    rows = [
        "1\t1\t0\t0\t0\t0\t0\t0\t1000\t1000\t-1\t",
        '5\t1\t1\t1\t1\t1\t10\t20\t30\t10\t96\t"Quoted',
        "5\t1\t1\t1\t1\t2\t50\t18\t30\t12\t90\tword",
        "5\t1\t1\t1\t2\t1\t10\t40\t30\t10\t95\tnext",
        "5\t1\t1\t1\t2\t2\t50\t40\t30\t10\t12\t~~~",
    ]
    found = _of_tsv(head + "\n".join(rows) + "\n", 0.5, 200)
    assert [(each.text, each.box) for each in found] == [
        ('"Quoted word', (20.0, 36.0, 160.0, 60.0)),
        ("next", (20.0, 80.0, 80.0, 100.0)),
    ]
