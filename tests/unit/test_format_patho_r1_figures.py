"""What Patho-R1's own extraction has written of books: crops, captions, and references that may be none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from formats import png

from pathor1.data import formats
from pathor1.data.formats.patho_r1_figures import records
from pathor1.errors import DataError
from pathor1.samples import Sample

ROW = {
    "bbox": [105, 769, 413, 1006],
    "caption": "Normal colon. Straight crypts.",
    "figure_path": "output/atlas/crops/0050_fig1.jpg",
    "inline_ref": "Glands stand like test tubes in a rack.",
}


def write(folder: Path, rows: object) -> Path:
    (folder / "results").mkdir(parents=True)
    (folder / "crops").mkdir()
    (folder / "crops/0050_fig1.jpg").write_bytes(png(1))
    (folder / "results/result.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_a_panel_with_its_caption_page_and_reference(tmp_path):
    book = write(tmp_path / "atlas", [ROW])
    (only,) = formats.load("patho-r1-figures").records(book)
    assert only.where == "atlas/results/result.json, 0"
    assert only.pictures == (book / "crops/0050_fig1.jpg",)
    assert only.sample == Sample(
        id="atlas/0",
        source="atlas",
        task="caption",
        question="",
        answer="Normal colon. Straight crypts.",
        meta={
            "book": "atlas",
            "page": 50,
            "box": [105.0, 769.0, 413.0, 1006.0],
            "references": ["Glands stand like test tubes in a rack."],
        },
    )


def test_crops_of_two_books_are_told_apart(tmp_path):
    write(tmp_path / "one", [ROW])
    write(tmp_path / "two", [ROW | {"figure_path": r"C:\out\crops\0050_fig1.jpg"}])
    found = list(records(tmp_path))
    assert [each.sample.id for each in found if each.sample] == ["one/0", "two/0"]
    assert [each.pictures[0].parents[1].name for each in found] == ["one", "two"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("", []),
        (None, []),
        ("Normal colon.  Straight crypts.", []),  # copied from the caption
        (["See the glands.", "", 3], ["See the glands."]),
    ],
)
def test_a_caption_that_was_copied_is_no_reference(tmp_path, said, kept):
    (only,) = records(write(tmp_path / "atlas", [ROW | {"inline_ref": said}]))
    assert only.sample
    assert only.sample.meta
    assert only.sample.meta["references"] == kept


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (ROW | {"bbox": [5, 5, 5, 9]}, "bbox is [5, 5, 5, 9], where left, top, right, bottom are needed"),
        (ROW | {"bbox": [5, 5, 9]}, "bbox is [5, 5, 9], where left, top, right, bottom are needed"),
        (ROW | {"caption": " "}, "caption is ' ', where a text is needed"),
        (ROW | {"figure_path": "crops/0051_fig1.jpg"}, "picture 0051_fig1.jpg: not in BOOK/crops"),
        ([], "of type list, where a table of fields is needed"),
    ],
)
def test_items_that_cannot_be_used_say_why(tmp_path, row, why):
    book = write(tmp_path / "atlas", [ROW, row])
    first, second = records(book)
    assert first.problem is None
    assert second.problem == why.replace("BOOK", str(book))


def test_another_source_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no results/result.json; give a book's output folder"):
        next(records(tmp_path))
    with pytest.raises(DataError, match=r"no JSON list; give what step 5 of the extraction writes"):
        next(records(write(tmp_path / "atlas", {"a": 1})))
