"""SICAPv2: rows of Excel tables, of exactly one class."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import openpyxl
import pytest
from formats import png

from pathor1.data import formats
from pathor1.data.formats.sicapv2 import records
from pathor1.data.importing import complete
from pathor1.errors import DataError
from pathor1.samples import Sample

OPTIONS = ("non-cancerous", "Gleason grade 3", "Gleason grade 4", "Gleason grade 5")
HEADER = ["image_name", "NC", "G3", "G4", "G5", "G4C"]
TRAIN = [["a.jpg", 1, 0, 0, 0, 0], ["b.jpg", 0, 1, 0, 0, 0], ["c.jpg", 0, 0, 1, 0, 1], ["d.jpg", 0, 0, 0, 1, 0]]
TEST = [["e.jpg", 0, 0, 1, 0, 0]]


def write(source: Path, name: str, *rows: list[object]) -> Path:
    path = source / "partition/Test" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


@pytest.fixture
def source(tmp_path):
    write(tmp_path, "Train.xlsx", HEADER, *TRAIN)
    write(tmp_path, "Test.xlsx", HEADER, *TEST)
    (tmp_path / "images").mkdir()
    for seed, name in enumerate("abcde"):
        (tmp_path / f"images/{name}.jpg").write_bytes(png(seed))
    return tmp_path


def test_a_question_for_each_row_of_both_tables(source):
    found = list(formats.load("sicapv2").records(source))
    assert [each.where for each in found] == [f"Train.xlsx, row {row}" for row in (2, 3, 4, 5)] + ["Test.xlsx, row 2"]
    assert [each.pictures for each in found] == [(source / f"images/{name}.jpg",) for name in "abcde"]
    samples = [complete(each) for each in found]
    assert [sample.id for sample in samples] == [f"sicapv2/train/{row}" for row in (2, 3, 4, 5)] + ["sicapv2/test/2"]
    assert [(sample.split, sample.answer) for sample in samples] == [
        ("train", "A"),
        ("train", "B"),
        ("train", "C"),
        ("train", "D"),
        ("test", "C"),
    ]
    assert found[2].sample == Sample(
        id="sicapv2/train/4",
        source="SICAPv2",
        task="mcq",
        question="Which Gleason grade does this prostate tissue show?",
        options=OPTIONS,
        answer="C",
        subfield="histopathology",
        split="train",
        meta={"class": "G4", "image_name": "c.jpg", "cribriform": True},
    )


def test_tables_with_an_index_without_g4c_and_with_blank_rows(source):
    write(source, "Train.xlsx", [None, "G5", "G4", "G3", "NC", "image_name"], [None], [7, 0, 0, 1, 0, "b.jpg"])
    train, test = records(source)
    assert train.sample is not None
    assert (train.sample.id, train.sample.answer) == ("sicapv2/train/3", "B")
    assert train.sample.meta == {"class": "G3", "image_name": "b.jpg"}
    assert test.where == "Test.xlsx, row 2"


def test_a_table_whose_size_is_written_wrong_is_read_whole(source):
    path = source / "partition/Test/Train.xlsx"
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"]
    parts["xl/worksheets/sheet1.xml"] = re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1:C2"', sheet)
    assert parts["xl/worksheets/sheet1.xml"] != sheet
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data)
    assert [each.problem for each in records(source)] == [None] * 5


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (["a.jpg", 0, 0, 0, 0, 1], "none of NC, G3, G4, G5 marked, where one is needed"),
        (["a.jpg", 0, 1, 1, 0, 0], "G3 and G4 of NC, G3, G4, G5 marked, where one is needed"),
        (["a.jpg", 0, 1, None, 0, 0], "G4 is null"),
        (["a.jpg", 0, "x", 1, 0, 0], "G3 is 'x', where 0 or 1 is needed"),
        ([None, 1, 0, 0, 0, 0], "image_name is null"),
        (["f.jpg", 1, 0, 0, 0, 0], "picture images/f.jpg: not in SOURCE"),
    ],
)
def test_rows_that_cannot_be_used_say_why(source, row, why):
    write(source, "Train.xlsx", HEADER, TRAIN[0], row, TRAIN[1])
    first, second, third, _ = records(source)
    assert (first.problem, third.problem) == (None, None)
    assert second.where == "Train.xlsx, row 3"
    assert second.problem == why.replace("SOURCE", str(source))


def test_another_source_is_refused(source, tmp_path):
    with pytest.raises(DataError, match=r"Train.xlsx: no such file; give the folder that holds SICAPv2's images/"):
        next(records(source / "images"))
    path = write(source, "Test.xlsx", ["image_name", "G3"], ["a.jpg", 1])
    with pytest.raises(DataError, match=r"Test.xlsx: no column NC, G4, G5; give SICAPv2's own table"):
        list(records(source))
    path.write_text("image_name,NC", encoding="utf-8")
    with pytest.raises(DataError, match=r"Test.xlsx: not an Excel file"):
        list(records(source))
    path.unlink()
    with pytest.raises(DataError, match=r"Test.xlsx: no such file"):  # before anything is imported
        next(records(source))
