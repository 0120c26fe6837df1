"""verl's rows for reinforcement learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import png

from pathor1.data.formats import load
from pathor1.data.formats.record import Record
from pathor1.data.formats.verl_rows import split_options
from pathor1.errors import DataError
from pathor1.samples import Sample

ASKED = "<image>\nWhich fits?\n\nA. naevus\nB. melanoma (C)\n\nC. B. cereus\nThink first."


def records(source: Path) -> list[Record]:
    return list(load("verl").records(source))


def row(asked: str | None, truth: Any, images: int | None = 1, **extra: Any) -> dict[str, Any]:
    return {
        "data_source": "lab/path",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}],
        "images": None if images is None else [{"bytes": png(seed), "path": None} for seed in range(images)],
        "ability": "pathology",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": None, "index": 7, "answer": None, "question": None, **extra},
    }


def write(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def expected(id_: str, task: Any, question: str, answer: str, **values: Any) -> Sample:
    meta = {"ability": "pathology", "style": "rule", "index": 7, "system": "Be brief."}
    sample = {"split": "train", "meta": meta, **values}
    return Sample(id=id_, source="lab/path", task=task, question=question, answer=answer, **sample)


def test_rows_of_all_kinds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "path.parquet",
        row(ASKED, "B"),
        row("Is it benign? <image>", "YES", split="validation"),
        row("<image><image>Compare.", "a gland", images=2, split="test", answer="All of it."),
        row(ASKED, "b"),
        row(ASKED, "B", question="Which one is it?"),
        row(ASKED, "B", question="<image>\nWhich one is it?\n(A) naevus\n(B) melanoma (C)\n(C) B. cereus"),
        row("<image>Name it. Answer in a box.", "lentigo", question="Name it."),
        row("Which point?", "B", images=None),
        row("Which point?", "B", images=0),
    )
    found = records(path)
    options = ("naevus", "melanoma (C)", "B. cereus")
    meta = {"ability": "pathology", "style": "rule", "index": 7, "answer": "All of it.", "system": "Be brief."}
    whole = ASKED.removeprefix("<image>\n")
    assert [one.where for one in found] == [f"path.parquet, {place}" for place in range(9)]
    assert [one.sample for one in found] == [
        expected("lab/path/path/0", "mcq", "Which fits?\n\nThink first.", "B", options=options),
        expected("lab/path/path/1", "yes_no", "Is it benign?", "yes", split="val"),
        expected("lab/path/path/2", "open", "Compare.", "a gland", split="test", meta=meta),
        expected("lab/path/path/3", "open", whole, "b"),
        expected("lab/path/path/4", "mcq", "Which one is it?", "B", options=options),
        expected("lab/path/path/5", "mcq", "Which one is it?", "B", options=options),
        expected("lab/path/path/6", "open", "Name it.", "lentigo"),
        expected("lab/path/path/7", "open", "Which point?", "B"),
        expected("lab/path/path/8", "open", "Which point?", "B"),
    ]
    one, two = (png(0),), (png(0), png(1))
    assert [each.pictures for each in found] == [one, one, two, one, one, one, one, (), ()]
    assert all(each.sample and each.sample.problem() is None for each in found)


@pytest.mark.parametrize(
    ("asked", "question", "options"),
    [
        ("Which?\n(A) x\n(B) y", "Which?", ("x", "y")),
        ("Which?\n  A) x\n  B) y", "Which?", ("x", "y")),
        ("A. baumannii grew. Which?\nA. x\nB. y", "A. baumannii grew. Which?", ("x", "y")),
        ("A. baumannii grew.\nWhich?", "A. baumannii grew.\nWhich?", ()),
        ("B. x\nC. y", "B. x\nC. y", ()),
        ("A. x\nso\nB. y", "A. x\nso\nB. y", ()),
        ("Findings\nA. f\nB. g\nWhich?\nA. x\nB. y\nC. z", "Findings\nA. f\nB. g\nWhich?", ("x", "y", "z")),
        ("Which?\nA. x\nB.\nC. z", "Which?\nA. x\nB.\nC. z", ()),
        ("Which? (A) x (B) y", "Which? (A) x (B) y", ()),
        ("A. t\nB. u\nC. v\nD. w\nE. x\nF. y\nG. z", "", ("t", "u", "v", "w", "x", "y", "z")),
    ],
)
def test_options_are_lines_from_a_on(asked: str, question: str, options: tuple[str, ...]) -> None:
    assert split_options(asked) == (question, options)


def test_pictures_may_be_bare_bytes_and_other_columns_absent(tmp_path: Path) -> None:
    rows = [
        {
            "data_source": "lab",
            "prompt": [{"role": "user", "content": "<image>Is it?"}],
            "images": [png(3)],
            "reward_model": {"ground_truth": "no"},
        }
    ]
    (found,) = records(write(tmp_path / "x_validation-00000-of-00001.parquet", *rows))
    assert found.sample == Sample(
        id="lab/x_validation-00000-of-00001/0",
        source="lab",
        task="yes_no",
        question="Is it?",
        answer="no",
        split="val",
    )
    assert found.pictures == (png(3),)


def test_files_of_a_folder_have_their_splits(tmp_path: Path) -> None:
    for name in ("test", "tests", "b_train"):
        write(tmp_path / f"{name}.parquet", row("<image>Name it.", "a"), row("<image>Name it.", "b"))
    assert [(one.sample.id, one.sample.split) for one in records(tmp_path) if one.sample] == [
        ("lab/path/b_train/0", "train"),
        ("lab/path/b_train/1", "train"),
        ("lab/path/test/0", "test"),
        ("lab/path/test/1", "test"),
        ("lab/path/tests/0", "train"),
        ("lab/path/tests/1", "train"),
    ]


def test_bad_rows_are_named(tmp_path: Path) -> None:
    assistant = row("<image>Name it.", "a")
    assistant["prompt"].append({"role": "assistant", "content": "It."})
    empty = row("<image>Name it.", "a")
    empty["images"][0]["bytes"] = None
    path = write(
        tmp_path / "train.parquet",
        row(ASKED, None),
        row(None, "B"),
        row(ASKED, "B", images=2),
        row("Name it.", "a"),
        row(ASKED, "B", split="a/b"),
        assistant,
        empty,
        {**row(ASKED, "B"), "reward_model": None},
        {**row(ASKED, "B"), "prompt": None},
        {**row(ASKED, "B"), "data_source": " "},
        row(ASKED, "D"),
    )
    found = records(path)
    assert [(one.where, one.problem) for one in found] == [
        (f"train.parquet, {place}", problem)
        for place, problem in enumerate(
            (
                "ground_truth is null",
                "content is null",
                "1 <image> marks and 2 images, where each image needs its mark",
                "0 <image> marks and 1 images, where each image needs its mark",
                "split is 'a/b', where one word is needed",
                "prompt has a turn of 'assistant'; only a single question can be used",
                "image has no bytes; the file refers to pictures that are elsewhere",
                "reward_model is null",
                "prompt is null",
                "data_source is ' ', where a text is needed",
                None,
            )
        )
    ]
    assert found[10].sample
    assert found[10].sample.problem() == "the answer 'D' is none of the 3 options (A-C)"


@pytest.mark.parametrize("column", ["extra_info", "reward_model", "prompt"])
def test_a_column_of_another_type_is_a_problem_of_each_row(tmp_path: Path, column: str) -> None:
    (found,) = records(write(tmp_path / "x.parquet", {**row(ASKED, "B"), column: "text"}))
    assert found.problem
    assert "of type str, where a " in found.problem


def test_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no such file, and no folder of *.parquet; give a Parquet file of verl's rows"
    )
    path = write(tmp_path / "x.parquet", {"prompt": "q?", "answer": "a"})
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == (
        f"{path}: no column data_source, reward_model; verl's rows have data_source, prompt, reward_model"
    )
    path.write_bytes(b"no Parquet")
    with pytest.raises(DataError, match="x.parquet: not a Parquet file"):
        records(path)
