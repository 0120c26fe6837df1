"""PathCap: captions, and pictures whose field has several names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from formats import png

from pathor1.data import formats
from pathor1.data.formats.pathcap import records
from pathor1.errors import DataError
from pathor1.samples import Sample

ROW = {"caption": "Spindle cells (x400).\n", "pmc_id": "PMC7", "figure_fn": "PMC7_2.jpg"}


@pytest.fixture
def source(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/PMC7_2.jpg").write_bytes(png(1))
    return tmp_path


def write(folder: Path, rows: object) -> None:
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")


def test_a_caption_and_its_picture(source):
    write(source, [ROW])
    (only,) = formats.load("pathcap").records(source)
    assert only.where == "data.json, 0"
    assert only.pictures == (source / "images/PMC7_2.jpg",)
    assert only.sample == Sample(
        id="pathcap/train/0",
        source="PathCap",
        task="caption",
        question="",
        answer="Spindle cells (x400).",
        split="train",
        meta={"picture": "PMC7_2.jpg", "pmc_id": "PMC7"},
        license="CC-BY-NC-2.0",
    )


def test_every_name_of_the_picture_s_field(source):
    names = ("figure_fn", "image", "img", "image_name", "file_name")
    write(source, [{"caption": "x", name: "PMC7_2.jpg"} for name in names])
    found = list(records(source))
    assert [each.pictures for each in found] == [(source / "images/PMC7_2.jpg",)] * 5
    assert [each.sample.id for each in found if each.sample] == [f"pathcap/train/{place}" for place in range(5)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"caption": "x"}, "no field figure_fn or image or img or image_name or file_name; it has caption"),
        ({"figure_fn": "PMC7_2.jpg"}, "no field caption; it has figure_fn"),
        (ROW | {"caption": ["x"]}, "caption is ['x'], where a text is needed"),
        (ROW | {"figure_fn": "b.jpg"}, "picture images/b.jpg: not in SOURCE"),
        (ROW | {"figure_fn": "../data.json"}, "picture images/../data.json: its name leads out of SOURCE"),
        (["x"], "of type list, where a table of fields is needed"),
    ],
)
def test_items_that_cannot_be_used_say_why(source, row, why):
    write(source, [ROW, row, ROW])
    first, second, third = records(source)
    assert (first.problem, third.problem) == (None, None)
    assert second.where == "data.json, 1"
    assert second.problem == why.replace("SOURCE", str(source))


def test_another_source_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.json: no such file; give the folder that holds PathCap's data.json"):
        next(records(tmp_path))
    write(tmp_path, {"PubMed": {"val": [ROW]}})  # PathMMU's file has the same name
    with pytest.raises(DataError, match=r"data.json: holds no list of items; give PathCap's own file"):
        next(records(tmp_path))
    (tmp_path / "data.json").write_text("[{", encoding="utf-8")
    with pytest.raises(DataError, match=r"data.json: not JSON"):
        next(records(tmp_path))
