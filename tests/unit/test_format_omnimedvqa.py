"""OmniMedVQA."""

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

ITEM: dict[str, Any] = {
    "dataset": "BreakHis",
    "question_id": "b_0001",
    "question_type": "Disease Diagnosis",
    "question": "q?",
    "gt_answer": " Lobular Carcinoma ",
    "image_path": "Images/BreakHis/1.png",
    "option_A": "adenosis",
    "option_B": "lobular carcinoma",
    "option_C": "B",
    "option_D": "tubular adenoma",
    "modality_type": "Microscopy Images",
}
META = {name: ITEM[name] for name in ("dataset", "question_id", "question_type", "modality_type", "image_path")}


def records(source: Path) -> list[Record]:
    return list(load("omnimedvqa").records(source))


def write(folder: Path, files: dict[str, list[Any]]) -> Path:
    """The files of questions, and the one picture."""
    for name, items in files.items():
        path = folder / "QA_information" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(items))
    picture = folder / "Images/BreakHis/1.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(png(1))
    return picture


def expected(within: str, **values: Any) -> Sample:
    sample = {
        "options": ("adenosis", "lobular carcinoma", "B", "tubular adenoma"),
        "answer": "B",
        "meta": {"access": within.split("/", maxsplit=1)[0], **META},
    }
    return Sample(
        id=f"omnimedvqa/test/{within}",
        source="OmniMedVQA",
        task="mcq",
        question="q?",
        split="test",
        **{**sample, **values},
    )


def test_items_of_all_files(tmp_path: Path) -> None:
    two = {**ITEM, "option_C": None, "option_D": ""}
    letter = {**ITEM, "gt_answer": "B"}
    picture = write(
        tmp_path,
        {
            "Restricted-access/BreakHis.json": [ITEM],
            "Open-access/BreakHis.json": [ITEM, letter],
            "Open-access/ACRIMA.json": [two],
        },
    )
    found = records(tmp_path)
    assert [one.where for one in found] == [
        "Open-access/ACRIMA.json, 0",
        "Open-access/BreakHis.json, 0",
        "Open-access/BreakHis.json, 1",
        "Restricted-access/BreakHis.json, 0",
    ]
    assert [one.sample for one in found] == [
        expected("Open-access/ACRIMA/0", options=("adenosis", "lobular carcinoma")),
        expected("Open-access/BreakHis/0"),
        expected("Open-access/BreakHis/1", answer="C"),  # an option's text, though it looks like a letter
        expected("Restricted-access/BreakHis/0"),
    ]
    assert [one.pictures for one in found] == [(picture,)] * 4
    assert all(one.sample and one.sample.problem() is None for one in found)


def test_bad_items_are_named(tmp_path: Path) -> None:
    items: list[Any] = [
        {**ITEM, "gt_answer": "A"},
        {**ITEM, "image_path": "Images/BreakHis/2.png"},
        {**ITEM, "image_path": "/etc/passwd"},
        {**ITEM, "image_path": "x" * 300},
        {**ITEM, "image_path": "病" * 100},
        {**ITEM, "option_B": 7},
        {name: value for name, value in ITEM.items() if name.startswith("option_")},
        None,
    ]
    write(tmp_path, {"Open-access/B.json": items})
    found = records(tmp_path)
    texts = ["adenosis", "lobular carcinoma", "B", "tubular adenoma"]
    assert [(one.where, one.problem) for one in found] == [
        ("Open-access/B.json, 0", f"the answer 'A' is the text of 0 of the options {texts}"),
        ("Open-access/B.json, 1", f"picture Images/BreakHis/2.png: not in {tmp_path}"),
        ("Open-access/B.json, 2", f"picture /etc/passwd: its name leads out of {tmp_path}"),
        ("Open-access/B.json, 3", f"picture {'x' * 80}: longer than the name of a file"),
        ("Open-access/B.json, 4", f"picture {'病' * 80}: File name too long"),
        ("Open-access/B.json, 5", "option_B is 7, where a text is needed"),
        ("Open-access/B.json, 6", "no field question; it has option_A, option_B, option_C, option_D"),
        ("Open-access/B.json, 7", "of type NoneType, where a table of fields is needed"),
    ]


def test_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no QA_information/Open-access/*.json; give the folder of QA_information/ and Images/"
    )
    folder = tmp_path / "QA_information/Open-access"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text('{"data": []}')
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == (
        f"{folder}/a.json: no JSON list; OmniMedVQA's has image_path, question, option_A, ..., gt_answer"
    )
    (folder / "a.json").write_text("[{]")
    with pytest.raises(DataError, match="a.json: not JSON: "):
        records(tmp_path)
