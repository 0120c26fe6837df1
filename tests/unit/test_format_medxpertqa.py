"""MedXpertQA, the part with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from formats import png

from pathor1.data.formats import load
from pathor1.data.formats.record import Record
from pathor1.errors import DataError
from pathor1.samples import Sample

OPTIONS = {"A": "naevus", "B": "melanoma (C)", "C": "none of the Answer Choices: above"}
SHOWN = "(A) naevus (B) melanoma (C) (C) none of the Answer Choices: above"
ITEM = {
    "id": "MM-0",
    "question": f"Which of these Answer Choices: fits?\nAnswer Choices: {SHOWN}",
    "options": OPTIONS,
    "label": "B",
    "images": ["MM-0-a.jpeg"],
    "medical_task": "Diagnosis",
    "body_system": "Skin",
    "question_type": "Reasoning",
}


def records(source: Path) -> list[Record]:
    return list(load("medxpertqa").records(source))


def write(folder: Path, **splits: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, items in splits.items():
        (folder / f"{split}.jsonl").write_text("\n\n".join(map(json.dumps, items)) + "\n")


def pictures(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / name for name in ("MM-0-a.jpeg", "MM-0-b.jpeg")]
    for seed, path in enumerate(paths):
        path.write_bytes(png(seed))
    return paths


def expected(split: str, place: int) -> Sample:
    return Sample(
        id=f"medxpertqa/{split}/{place}",
        source="MedXpertQA",
        task="mcq",
        question="Which of these Answer Choices: fits?",
        options=("naevus", "melanoma (C)", "none of the Answer Choices: above"),
        answer="B",
        split=split,
        meta={"id": "MM-0", "medical_task": "Diagnosis", "body_system": "Skin", "question_type": "Reasoning"},
        license="MIT",
    )


@pytest.mark.parametrize("given", [".", "MM"])
@pytest.mark.parametrize("images", ["images", "MM/images"])
def test_items_of_both_splits(tmp_path: Path, given: str, images: str) -> None:
    a, b = pictures(tmp_path / images)
    two = {**ITEM, "images": ["MM-0-b.jpeg", "MM-0-a.jpeg"], "options": dict(reversed(OPTIONS.items()))}
    write(tmp_path / "MM", dev=[ITEM], test=[ITEM, two])
    found = records(tmp_path / given)
    assert [one.where for one in found] == ["dev.jsonl, 0", "test.jsonl, 0", "test.jsonl, 1"]
    assert [one.sample for one in found] == [expected("dev", 0), expected("test", 0), expected("test", 1)]
    assert [one.pictures for one in found] == [(a,), (a,), (b, a)]
    assert all(one.sample and one.sample.problem() is None for one in found)


def test_a_question_without_its_choices_stays_as_it_is(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    write(tmp_path / "MM", test=[{**ITEM, "question": "Which of the Answer Choices: fits?"}])
    (found,) = records(tmp_path)
    assert found.sample
    assert found.sample.question == "Which of the Answer Choices: fits?"


def test_the_choices_that_are_cut_off_are_the_last(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    twice = f"One says Answer Choices: (A) x. Which?\nAnswer Choices: {SHOWN}"
    write(tmp_path / "MM", test=[{**ITEM, "question": twice}])
    (found,) = records(tmp_path)
    assert found.sample
    assert found.sample.question == "One says Answer Choices: (A) x. Which?"


def test_bad_items_are_named(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    ten = {letter: f"option {letter}" for letter in "ABCDEFGHIJ"}
    items: list[Any] = [
        {**ITEM, "options": ten, "label": "J"},
        {**ITEM, "label": "D"},
        {**ITEM, "label": None},
        {**ITEM, "images": ["MM-0-a.jpeg", "MM-9-a.jpeg"]},
        {**ITEM, "images": []},
        {**ITEM, "images": "MM-0-a.jpeg"},
        {**ITEM, "images": [3]},
        {**ITEM, "options": {"A": "x", "B": None, "C": "y"}},
        {**ITEM, "options": ["x", "y"]},
        {**ITEM, "options": {"A": "x", "B": 2}},
        {name: value for name, value in ITEM.items() if name in ("images", "label", "options")},
        ["no item"],
    ]
    write(tmp_path / "MM", test=items)
    found = records(tmp_path)
    assert [one.sample.problem() for one in found if one.sample] == [
        "10 options, where 2 to 6 can be lettered",
        "the answer 'D' is none of the 3 options (A-C)",
    ]
    folders = f"{tmp_path}/MM/images or {tmp_path}/images"
    assert [(one.where, one.problem) for one in found[2:]] == [
        ("test.jsonl, 2", "label is null"),
        ("test.jsonl, 3", f"picture MM-9-a.jpeg: not in {folders}"),
        ("test.jsonl, 4", "images is empty"),
        ("test.jsonl, 5", "images is of type str, where a list is needed"),
        ("test.jsonl, 6", "images is 3, where a text is needed"),
        ("test.jsonl, 7", "options are lettered A, C, where A, B, C ... are needed"),
        ("test.jsonl, 8", "of type list, where a table of fields is needed"),
        ("test.jsonl, 9", "options B is 2, where a text is needed"),
        ("test.jsonl, 10", "no field question; it has options, label, images"),
        ("test.jsonl, 11", "of type list, where a table of fields is needed"),
    ]


def test_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: neither dev.jsonl nor test.jsonl; give the folder that holds MedXpertQA's MM/ and images/"
    )
    (tmp_path / "test.jsonl").write_text("no JSON\n")
    with pytest.raises(DataError, match="test.jsonl, line 1: not JSON: "):
        records(tmp_path)
