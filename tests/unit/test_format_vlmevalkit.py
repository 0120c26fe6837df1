"""TSV files of VLMEvalKit."""

from __future__ import annotations

import base64
import csv
import re
from pathlib import Path
from typing import Any

import pytest
from formats import png

from pathor1.data.formats import load
from pathor1.data.formats.record import Record
from pathor1.errors import DataError
from pathor1.samples import Sample

COLUMNS = ("index", "hint", "question", "image", "image_path", "A", "B", "C", "answer", "category", "split")


def records(source: Path) -> list[Record]:
    return list(load("vlmevalkit").records(source))


def base64_of(seed: int) -> str:
    return base64.b64encode(png(seed)).decode()


def write(path: Path, *rows: dict[str, Any], columns: tuple[str, ...] = COLUMNS, start: str = "") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(start)
        table = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return path


def mcq(index: Any, **values: Any) -> dict[str, Any]:
    row = {"index": index, "question": "q?", "image": base64_of(0), "A": "x", "B": "y", "C": "z", "answer": "B"}
    return {**row, **values}


def expected(place: int, answer: str = "B", **values: Any) -> Sample:
    sample: dict[str, Any] = {"task": "mcq", "options": ("x", "y", "z"), "split": "test", "question": "q?"}
    sample.update(values)
    return Sample(id=f"Path/{sample['split']}/{place}", source="Path", answer=answer, **sample)


def test_rows_of_all_kinds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "Path.tsv",
        mcq("i0"),
        mcq("i1", C="nan", hint='A 病理 slide,\nwith "two" lines', split="dev", category="skin"),
        mcq("i2", A="", answer="C", split="validation"),
        mcq("i3", A="", B="", C="", answer="No"),
        mcq("i4", A="", B="", C="", answer="no atypia"),
        start="\ufeff",
    )
    found = records(path)
    assert [one.where for one in found] == [f"Path.tsv, {place}" for place in range(5)]
    assert [one.sample for one in found] == [
        expected(0, meta={"index": "i0"}),
        expected(
            1,
            options=("x", "y"),
            question='A 病理 slide,\nwith "two" lines\nq?',
            split="dev",
            meta={"index": "i1", "category": "skin"},
        ),
        expected(2, options=("y", "z"), split="val", meta={"index": "i2"}),  # C is the second that is shown
        expected(3, "no", task="yes_no", options=None, meta={"index": "i3"}),
        expected(4, "no atypia", task="open", options=None, meta={"index": "i4"}),
    ]
    assert [one.pictures for one in found] == [(png(0),)] * 5
    assert all(one.sample and one.sample.problem() is None for one in found)


def test_pictures_are_shared_in_lists_and_in_files(tmp_path: Path) -> None:
    shared, listed = base64_of(1), str([base64_of(2), base64_of(3)])
    assert len(shared) > 64
    path = write(
        tmp_path / "Path.tsv",
        mcq(5, image=12, question="病理\n?"),
        mcq(12, image=shared, question="two\nlines, 病理"),
        mcq(13, image=12),
        mcq(14, image=listed),
        mcq(15, image=14),
        mcq(16, image="", image_path="a.png"),
        mcq(17, image="", image_path="['b.png', 'c.png']"),
        mcq(18, image=base64.encodebytes(png(4)).decode()),
    )
    (tmp_path / "images/Path").mkdir(parents=True)
    files = [tmp_path / "a.png", tmp_path / "images/b.png", tmp_path / "images/Path/c.png"]
    for file in files:
        file.write_bytes(png(5))
    assert [one.pictures for one in records(path)] == [
        (png(1),),
        (png(1),),
        (png(1),),
        (png(2), png(3)),
        (png(2), png(3)),
        (files[0],),
        (files[1], files[2]),
        (png(4),),
    ]


def test_an_index_has_at_most_64_characters(tmp_path: Path) -> None:
    path = write(
        tmp_path / "Path.tsv", mcq("A" * 64, image=base64_of(1)), mcq(1, image="A" * 64), mcq(2, image="A" * 68)
    )
    assert [one.pictures for one in records(path)] == [(png(1),), (png(1),), (bytes(51),)]


def test_a_folder_of_files(tmp_path: Path) -> None:
    write(tmp_path / "b.tsv", mcq(0))
    write(tmp_path / "a.tsv", mcq(0), mcq(1))
    found = [(one.sample.id, one.sample.source) for one in records(tmp_path) if one.sample]
    assert found == [("a/test/0", "a"), ("a/test/1", "a"), ("b/test/0", "b")]


def test_bad_rows_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "Path.tsv",
        mcq(0, answer="D"),
        mcq(1, C="", answer="C"),
        mcq(2, image=77),
        mcq(3, image=2),
        mcq(4, image=4),
        mcq(5, image="", image_path="gone.png"),
        mcq(6, image=""),
        mcq(7, image="*" * 100),
        mcq(8, question="nan"),
        mcq(9, answer=""),
        mcq(10, split="../test"),
        mcq(11, image="", image_path="[gone"),
        mcq(12, image="", image_path="[gone]"),
        mcq(13, image="", image_path="[1]"),
        mcq(14, image="", image_path="../Path.tsv"),
        mcq(15, B="", C="", answer="A"),
    )
    found = records(path)
    folders = f"{tmp_path} or {tmp_path}/images or {tmp_path}/images/Path"
    assert [one.problem for one in found] == [
        "the answer 'D' is none of the options' letters A, B, C",
        "the answer 'C' is none of the options' letters A, B",
        "image is '77', neither a picture nor the index of a row",
        "image is that of row '2', which has none of its own",
        "image is that of row '4', which has none of its own",
        f"picture gone.png: not in {folders}",
        "no field image_path; it has index, question, A, B, C, answer",
        "image is not base64: Only base64 data is allowed",
        "no field question; it has index, image, A, B, C, answer",
        "no field answer; it has index, question, image, A, B, C",
        "split is '../test', where one word is needed",
        f"picture [gone: not in {folders}",
        "image_path begins as a list does, and is none",
        "image_path is 1, where a text is needed",
        f"picture ../Path.tsv: its name leads out of {tmp_path}",
        None,
    ]
    assert found[15].sample
    assert found[15].sample.problem() == "1 options, where 2 to 6 can be lettered"


def test_seven_options_are_too_many(tmp_path: Path) -> None:
    letters = dict(zip("ABCDEFG", "tuvwxyz", strict=True))
    columns = ("index", "question", "image", *letters, "answer")
    row = {"index": 0, "question": "q?", "image": base64_of(0), **letters, "answer": "G"}
    (found,) = records(write(tmp_path / "Path.tsv", row, columns=columns))
    assert found.sample
    assert found.sample.problem() == "7 options, where 2 to 6 can be lettered"


@pytest.mark.parametrize(
    ("columns", "lacks"),
    [
        (("index", "question", "answer"), "image or image_path"),
        (("index", "image", "image_path"), "question, answer"),
    ],
)
def test_a_file_without_a_column(tmp_path: Path, columns: tuple[str, ...], lacks: str) -> None:
    path = write(tmp_path / "Path.tsv", columns=columns)
    with pytest.raises(DataError) as error:
        records(path)
    assert str(error.value) == (
        f"{path}: no column {lacks}; a TSV file of VLMEvalKit has index, question, image, answer"
    )


def test_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == f"{tmp_path}: no such file, and no folder of *.tsv; give a TSV file of VLMEvalKit"
    path = tmp_path / "x.tsv"
    path.write_bytes(png(0))
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}, byte 0: not a TSV file: 'utf-8' codec"):
        records(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no column index, question, answer; a TSV file"):
        records(tmp_path)
