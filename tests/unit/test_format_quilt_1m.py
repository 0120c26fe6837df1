"""Quilt-1M: rows of many lines, many rows of one picture, and rows that are no histology."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from formats import png

from pathor1.data import formats
from pathor1.data.formats.quilt_1m import records
from pathor1.errors import DataError
from pathor1.samples import Sample

COLUMNS = ["", "caption", "image_path", "subset", "split", "pathology", "roi_text", "noisy_text", "corrected_text",
           "med_umls_ids", "magnification", "height", "width", "not_histology"]  # fmt: skip
FIRST = {
    "": "40",
    "caption": 'Glands, "back to back",\n\nwith necrosis. ',
    "image_path": "a.jpg",
    "subset": "quilt",
    "split": "train",
    "pathology": "['Gastrointestinal']",
    "roi_text": "['glands,\nnecrosis']",
    "magnification": "1.0",
    "height": "480",
    "width": "640",
    "not_histology": "0",
}


def write(folder: Path, *rows: dict[str, str], name: str = "quilt_1M_lookup.csv", columns: list[str] = COLUMNS) -> None:
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def source(tmp_path):
    for place, name in enumerate(("images/a.jpg", "quilt_1m/b.jpg")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png(place))
    return tmp_path


def test_a_row_is_a_caption_and_its_picture_comes_again(source):
    write(source, FIRST, FIRST | {"": "41", "split": "val", "caption": "Tumour."}, FIRST | {"image_path": "b.jpg"})
    found = list(formats.load("quilt-1m").records(source))
    assert [each.where for each in found] == [f"quilt_1M_lookup.csv, row {place}" for place in range(3)]
    assert found[0].sample == Sample(
        id="quilt-1m/train/0",
        source="Quilt-1M",
        task="caption",
        question="",
        answer='Glands, "back to back",\n\nwith necrosis.',
        subfield="histopathology",
        split="train",
        meta={
            "index": "40",
            "image_path": "a.jpg",
            "subset": "quilt",
            "pathology": "['Gastrointestinal']",
            "roi_text": "['glands,\nnecrosis']",
            "magnification": "1.0",
            "height": "480",
            "width": "640",
            "not_histology": "0",
        },
    )
    assert [(each.sample.id, each.sample.split, each.sample.answer) for each in found[1:] if each.sample] == [
        ("quilt-1m/val/1", "val", "Tumour."),
        ("quilt-1m/train/2", "train", 'Glands, "back to back",\n\nwith necrosis.'),
    ]
    assert [each.pictures for each in found] == [
        (source / "images/a.jpg",),
        (source / "images/a.jpg",),
        (source / "quilt_1m/b.jpg",),
    ]


def test_releases_without_the_mark_and_the_other_name_of_the_table(source):
    columns = COLUMNS[:-1]
    row = {name: FIRST.get(name, "") for name in columns}
    write(source, row, name="quilt_1m_lookup.csv", columns=columns)
    (only,) = records(source)
    assert only.where == "quilt_1m_lookup.csv, row 0"
    assert only.sample is not None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"not_histology": "1"}, "not histology"),
        ({"not_histology": "1.0"}, "not histology"),
        ({"not_histology": "True"}, "not histology"),
        ({"caption": ""}, "caption is '', where a text is needed"),
        ({"image_path": ""}, "image_path is '', where a text is needed"),
        ({"split": "../x"}, "split '../x' is none of train, val, test"),
        ({"image_path": "c.jpg"}, "picture images/c.jpg or quilt_1m/c.jpg: not in SOURCE"),
        ({"image_path": "../images/a.jpg"}, "picture images/../images/a.jpg: its name leads out of SOURCE"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_say_why(source, change, why):
    write(source, FIRST, FIRST | change, FIRST)
    first, second, third = records(source)
    assert (first.problem, third.problem) == (None, None)
    assert second.where == "quilt_1M_lookup.csv, row 1"
    assert second.problem == why.replace("SOURCE", str(source))


def test_a_row_that_is_cut_short_says_what_it_lacks(source):
    (source / "quilt_1M_lookup.csv").write_text("caption,image_path,split\nTumour.,a.jpg\n", encoding="utf-8")
    (only,) = records(source)
    assert only.problem == "no field split; it has caption, image_path"


def test_another_source_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"quilt_1M_lookup.csv: no such file; give the folder that holds it"):
        next(records(tmp_path))
    (tmp_path / "quilt_1M_lookup.csv").write_text("image,caption\na.jpg,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"lookup.csv: no column image_path, split; give Quilt-1M's own table"):
        next(records(tmp_path))
