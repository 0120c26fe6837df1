"""Quilt-VQA, as JSON and as Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import png

from pathor1.data.formats import load
from pathor1.data.formats.record import Record
from pathor1.errors import DataError
from pathor1.samples import Sample

JSON = "quiltvqa_test_w_ans.json"
SENTENCE = "The glands are crowded, so it is."
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def records(source: Path) -> list[Record]:
    return list(load("quilt-vqa").records(source))


def expected(id_: str, task: Any, answer: str, **values: Any) -> Sample:
    return Sample(
        id=id_,
        source="Quilt-VQA",
        task=task,
        question="q?",
        answer=answer,
        split="test",
        license="CC-BY-NC-ND-3.0",
        **values,
    )


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(1))
    return path


def write(path: Path, *rows: tuple[str, str, str | None], extra: dict[str, list[str | None]] | None = None) -> None:
    """Rows of answer, answer_type, context, each with the picture of its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        "image": pa.array([{"bytes": png(n), "path": None} for n in range(len(rows))], IMAGE),
        "question": ["q?"] * len(rows),
        "answer": [row[0] for row in rows],
        "answer_type": [row[1] for row in rows],
        "context": [row[2] for row in rows],
    }
    pq.write_table(pa.table({**columns, **(extra or {})}), path)


def test_json(tmp_path: Path) -> None:
    closed = {"question": "q?", "answer": SENTENCE, "answer_type": "CLOSED"}
    items: list[Any] = [
        {"id": 7, "question": "q?", "answer": "a naevus", "answer_type": "OPEN", "context": "skin"},
        {"id": 7, **closed, "yes_no_answer": "Yes"},
        {"id": "8", **closed, "yes_no_answer": "no", "image": "slide 8.jpg"},
        {"id": 9, **closed},
        {"id": 10, **closed, "yes_no_answer": "yes"},
        {"id": 7, **closed, "yes_no_answer": "perhaps"},
        {"id": 7, "question": "q?", "answer": "a", "answer_type": "OTHER"},
        {"question": "q?", "answer": "a", "answer_type": "OPEN"},
        {"id": 7, "answer": "a", "answer_type": "OPEN"},
        {"id": "x" * 300, "question": "q?", "answer": "a", "answer_type": "OPEN"},
        17,
    ]
    (tmp_path / JSON).write_text(json.dumps(items))
    write(tmp_path / "data/train-0.parquet", ("not read", "OPEN", None))
    seven, eight = picture(tmp_path / "images/7.png"), picture(tmp_path / "quilt_vqa/slide 8.jpg")
    found = records(tmp_path)
    assert [one.sample for one in found[:3]] == [
        expected("quilt-vqa/test/0", "open", "a naevus", meta={"id": 7, "context": "skin"}),
        expected("quilt-vqa/test/1", "yes_no", "yes", explanation=SENTENCE, meta={"id": 7}),
        expected("quilt-vqa/test/2", "yes_no", "no", explanation=SENTENCE, meta={"id": "8", "image": "slide 8.jpg"}),
    ]
    assert [one.pictures for one in found[:3]] == [(seven,), (seven,), (eight,)]
    assert found[5].sample
    assert found[5].sample.problem() == "the answer 'perhaps' is neither 'yes' nor 'no'"
    folders = " or ".join(str(tmp_path / name) for name in ("images", "quilt_vqa", "quilt_vqa/images", "."))
    assert [(one.where, one.problem) for one in found if one.sample is None] == [
        (f"{JSON}, 3", "no field yes_no_answer; it has id, question, answer, answer_type"),
        (f"{JSON}, 4", f"picture 10.jpg or 10.png: not in {folders}"),
        (f"{JSON}, 6", "answer_type is 'OTHER', where OPEN or CLOSED is needed"),
        (f"{JSON}, 7", "no field id; it has question, answer, answer_type"),
        (f"{JSON}, 8", "no field question; it has id, answer, answer_type"),
        (f"{JSON}, 9", f"picture {'x' * 80}: longer than the name of a file"),
        (f"{JSON}, 10", "of type int, where a table of fields is needed"),
    ]


def test_parquet(tmp_path: Path) -> None:
    write(
        tmp_path / "data/train-00000-of-00002.parquet",
        ("a naevus", "OPEN", "skin"),
        ("Yes, it is.", "CLOSED", None),
        ("no evidence of that", "CLOSED", None),
        ("Nothing points to it.", "CLOSED", None),
    )
    write(tmp_path / "data/train-00001-of-00002.parquet", ("yes", "OPEN", None))
    found = records(tmp_path)
    assert [(one.sample, one.pictures) for one in found if one.sample] == [
        (expected("quilt-vqa-parquet/test/0", "open", "a naevus", meta={"context": "skin"}), (png(0),)),
        (expected("quilt-vqa-parquet/test/1", "yes_no", "yes", explanation="Yes, it is."), (png(1),)),
        (expected("quilt-vqa-parquet/test/2", "yes_no", "no", explanation="no evidence of that"), (png(2),)),
        (expected("quilt-vqa-parquet/test/4", "open", "yes"), (png(0),)),
    ]
    assert [(one.where, one.problem) for one in found if one.problem] == [
        (
            "data/train-00000-of-00002.parquet, 3",
            f"no yes_no_answer, and answer does not begin with yes or no; import {JSON}, which has it",
        )
    ]


def test_parquet_with_yes_no_answer(tmp_path: Path) -> None:
    extra: dict[str, list[str | None]] = {"yes_no_answer": ["No", None]}
    write(tmp_path / "a.parquet", ("Yes and no.", "CLOSED", None), ("Yes.", "closed", None), extra=extra)
    assert [one.sample.answer for one in records(tmp_path) if one.sample] == ["no", "yes"]


def test_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: neither {JSON} nor *.parquet; give the folder that holds Quilt-VQA's JSON and pictures"
    )
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/x.parquet: no column image, answer_type; Quilt-VQA's are image, question, answer, answer_type"
    )
    (tmp_path / JSON).write_text('{"item": []}')
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == f"{tmp_path}/{JSON}: no JSON list; Quilt-VQA's has id, question, answer, answer_type"
