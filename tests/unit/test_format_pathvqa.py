"""PathVQA, in Parquet and as it was published first."""

from __future__ import annotations

import pickle
import re
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

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("image", IMAGE), ("question", pa.string()), ("answer", pa.string())])


def records(source: Path) -> list[Record]:
    return list(load("pathvqa").records(source))


def row(seed: int | None, question: str | None, answer: str) -> dict[str, Any]:
    return {
        "image": {"bytes": None if seed is None else png(seed), "path": "x.jpg"},
        "question": question,
        "answer": answer,
    }


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path)


def expected(id_: str, task: Any, answer: str, split: str, **values: Any) -> Sample:
    return Sample(
        id=id_, source="PathVQA", task=task, question="q?", answer=answer, split=split, license="MIT", **values
    )


@pytest.mark.parametrize("folder", ["data", "."])
def test_parquet_files_become_samples_numbered_through_their_split(tmp_path: Path, folder: str) -> None:
    data = tmp_path / folder
    write(data / "train-00000-of-00002-ab.parquet", row(0, "q?", "in the liver"), row(0, " q? ", "Yes"))
    write(data / "train-00001-of-00002-cd.parquet", row(1, "q?", " NO "))
    write(data / "validation-00000-of-00001.parquet", row(2, "q?", "yes, clearly"))
    write(data / "test-00000-of-00001.parquet", row(3, "q?", "no"))
    (data / "trained-on.parquet").write_bytes(b"something else")
    found = records(tmp_path)
    assert {one.sample.id: one.sample for one in found if one.sample} == {
        sample.id: sample
        for sample in (
            expected("pathvqa/train/0", "open", "in the liver", "train"),
            expected("pathvqa/train/1", "yes_no", "yes", "train"),
            expected("pathvqa/train/2", "yes_no", "no", "train"),
            expected("pathvqa/val/0", "open", "yes, clearly", "val"),
            expected("pathvqa/test/0", "yes_no", "no", "test"),
        )
    }
    assert {one.sample.id: one.pictures for one in found if one.sample} == {
        "pathvqa/train/0": (png(0),),
        "pathvqa/train/1": (png(0),),
        "pathvqa/train/2": (png(1),),
        "pathvqa/val/0": (png(2),),
        "pathvqa/test/0": (png(3),),
    }
    assert all(one.sample and one.sample.problem() is None for one in found)


def test_bad_rows_are_named_and_keep_their_numbers(tmp_path: Path) -> None:
    write(
        tmp_path / "data/test-0.parquet", row(None, "q?", "a"), row(0, None, "a"), row(0, "q?", " "), row(0, "q?", "a")
    )
    found = records(tmp_path)
    assert [(one.where, one.problem) for one in found] == [
        ("data/test-0.parquet, 0", "image has no bytes; the file refers to pictures that are elsewhere"),
        ("data/test-0.parquet, 1", "question is null"),
        ("data/test-0.parquet, 2", "answer is ' ', where a text is needed"),
        ("data/test-0.parquet, 3", None),
    ]
    assert found[3].sample == expected("pathvqa/test/3", "open", "a", "test")


def original(folder: Path, **splits: Any) -> Path:
    """The first layout: a pickle a split, and one picture, train_0001."""
    for split, items in splits.items():
        path = folder / f"qas/{split}/{split}_qa.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(items if isinstance(items, bytes) else pickle.dumps(items))
        (folder / f"images/{split}").mkdir(parents=True)
        (folder / f"images/{split}/{split}_0001.jpg").write_bytes(png(1))
    return folder


def test_pickles_become_samples(tmp_path: Path) -> None:
    original(
        tmp_path,
        train=[
            {"image": "train_0001", "question": "q?", "answer": "a gland"},
            {"image": "train_0002", "question": "q?", "answer": "yes"},
            {"image": "../val/val_0001", "question": "q?", "answer": "yes"},
            {"image": "train_0001", "answer": "yes"},
            "no item",
        ],
        val=[{"image": "val_0001", "question": "q?", "answer": "Yes"}],
    )
    found = records(tmp_path)
    assert [(one.where, one.problem) for one in found] == [
        ("qas/train/train_qa.pkl, 0", None),
        ("qas/train/train_qa.pkl, 1", f"picture images/train/train_0002.jpg: not in {tmp_path}"),
        ("qas/train/train_qa.pkl, 2", f"picture images/train/../val/val_0001.jpg: its name leads out of {tmp_path}"),
        ("qas/train/train_qa.pkl, 3", "no field question; it has image, answer"),
        ("qas/train/train_qa.pkl, 4", "of type str, where a table of fields is needed"),
        ("qas/val/val_qa.pkl, 0", None),
    ]
    assert found[0].sample == expected(
        "pathvqa-original/train/0", "open", "a gland", "train", meta={"image": "train_0001"}
    )
    assert found[5].sample == expected("pathvqa-original/val/0", "yes_no", "yes", "val", meta={"image": "val_0001"})
    assert [one.pictures for one in found if one.sample] == [
        (tmp_path / "images/train/train_0001.jpg",),
        (tmp_path / "images/val/val_0001.jpg",),
    ]


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    items = b"(lp0\n(dp1\nS'image'\nS'test_0001'\nsS'question'\nS'q?'\nsS'answer'\nS'na\\xc3\\xafve'\nsa."
    (found,) = records(original(tmp_path, test=items))
    assert found.sample
    assert found.sample.answer == "naïve"


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_cannot_run_code(tmp_path: Path, protocol: int) -> None:
    harm = tmp_path / "harm"
    original(tmp_path, train=pickle.dumps([Touch(harm)], protocol=protocol))
    with pytest.raises(DataError, match="train_qa.pkl: not loaded, as that could run code: it asks for '"):
        records(tmp_path)
    assert not harm.exists()


@pytest.mark.parametrize(
    "garbage",
    [b"", b"no pickle", b"a.", b"I1x\n.", b"\x82\x05.", b"]K\x01K\x02s.", b"]}b.", b"}]]s."],
)
def test_a_broken_pickle_is_one_line(tmp_path: Path, garbage: bytes) -> None:
    path = original(tmp_path, train=garbage) / "qas/train/train_qa.pkl"
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: not a pickle that can be read: "):
        records(tmp_path)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    original(tmp_path, train={"image": "train_0001"})
    with pytest.raises(DataError, match="train_qa.pkl: holds a dict; PathVQA's is a list of image, question, answer"):
        records(tmp_path)


def test_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: neither (train|validation|test)-*.parquet nor qas/<split>/<split>_qa.pkl; "
        "give the folder that holds PathVQA's data/, or its qas/ and images/"
    )
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match="train-0.parquet: no column image, question, answer; it has text"):
        records(tmp_path)
