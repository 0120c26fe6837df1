"""PathMMU."""

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
    "No": 17,
    "img": "a.png",
    "question": " q? ",
    "options": ["A) Lymphoma (B-cell) 1) or 2)", "B) b) of C)", "C) (D) x", "D) Melanoma"],
    "answer": "D) Melanoma",
    "explanation": "Pigment.",
}
OPTIONS = ("Lymphoma (B-cell) 1) or 2)", "b) of C)", "(D) x", "Melanoma")


def records(source: Path) -> list[Record]:
    return list(load("pathmmu").records(source))


def write(folder: Path, data: Any) -> None:
    (folder / "data.json").write_text(json.dumps(data))


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(1))
    return path


def expected(subset: str, split: str, place: int, **values: Any) -> Sample:
    sample = {"options": OPTIONS, "answer": "D", "explanation": "Pigment."}
    return Sample(
        id=f"pathmmu/{subset}/{split}/{place}",
        source="PathMMU",
        task="mcq",
        question="q?",
        split=split,
        meta={"subset": subset, "No": 17, "img": "a.png"},
        license="CC-BY-ND-4.0",
        **{**sample, **values},
    )


def test_items_of_all_subsets_and_splits(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "PubMed": {
                "val": [{**ITEM, "explanation": None}],
                "test": [{**ITEM, "explanation": ""}, ITEM],
                "train": [],
            },
            "EduContent": {"test": [ITEM]},
        },
    )
    there = picture(tmp_path / "images/a.png")
    found = records(tmp_path)
    assert [one.where for one in found] == [
        "data.json, PubMed/val/0",
        "data.json, PubMed/test/0",
        "data.json, PubMed/test/1",
        "data.json, EduContent/test/0",
    ]
    assert [one.sample for one in found] == [
        expected("PubMed", "val", 0, explanation=None),
        expected("PubMed", "test", 0, explanation=None),
        expected("PubMed", "test", 1),
        expected("EduContent", "test", 0),
    ]
    assert [one.pictures for one in found] == [(there,)] * 4
    assert all(one.sample and one.sample.problem() is None for one in found)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_three_to_six_options(tmp_path: Path, count: int) -> None:
    options = [f"{letter}) text {letter})" for letter in "ABCDEF"[:count]]
    write(tmp_path, {"Atlas": {"test": [{**ITEM, "options": options, "answer": options[-1]}]}})
    picture(tmp_path / "images/a.png")
    (found,) = records(tmp_path)
    texts = tuple(f"text {letter})" for letter in "ABCDEF"[:count])
    assert found.sample == expected("Atlas", "test", 0, options=texts, answer="ABCDEF"[count - 1])
    assert found.sample.problem() is None


def test_a_picture_may_be_in_its_subset_s_folder(tmp_path: Path) -> None:
    write(tmp_path, {"SocialPath": {"test": [ITEM, {**ITEM, "img": "b.png"}]}, "Atlas": {"test": [ITEM]}})
    inner, outer = picture(tmp_path / "images/SocialPath/a.png"), picture(tmp_path / "images/b.png")
    picture(tmp_path / "images/SocialPath/b.png")
    found = records(tmp_path)
    assert [one.pictures for one in found] == [(inner,), (outer,), ()]
    assert [one.problem for one in found] == [None, None, f"picture images/a.png: not in {tmp_path}"]


def test_bad_items_are_named(tmp_path: Path) -> None:
    items: list[Any] = [
        {**ITEM, "img": "gated.png"},
        {**ITEM, "img": "../data.json"},
        {**ITEM, "img": None},
        {**ITEM, "answer": "Melanoma"},
        {**ITEM, "answer": None},
        {**ITEM, "options": None},
        {**ITEM, "question": " "},
        {"img": "a.png", "answer": "A"},
        ITEM,
    ]
    write(tmp_path, {"PathCLS": {"test": items}})
    picture(tmp_path / "images/a.png")
    found = records(tmp_path)
    assert [(one.where, one.problem) for one in found] == [
        ("data.json, PathCLS/test/0", f"picture images/gated.png: not in {tmp_path}"),
        ("data.json, PathCLS/test/1", f"picture images/../data.json: its name leads out of {tmp_path}"),
        ("data.json, PathCLS/test/2", "img is null"),
        ("data.json, PathCLS/test/3", "the answer 'Melanoma' has no letter in front"),
        ("data.json, PathCLS/test/4", "answer is null"),
        ("data.json, PathCLS/test/5", "options is null"),
        ("data.json, PathCLS/test/6", "question is ' ', where a text is needed"),
        ("data.json, PathCLS/test/7", "no field options; it has img, answer"),
        ("data.json, PathCLS/test/8", None),
    ]


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ("text", "of type str, where a table of fields is needed"),
        (None, "of type NoneType, where a table of fields is needed"),
        ([ITEM], "of type list, where a table of fields is needed"),
        ({**ITEM, "options": 4}, "options is of type int, where a list is needed"),
        ({**ITEM, "options": "A) x"}, "options is of type str, where a list is needed"),
        ({**ITEM, "explanation": ["x"]}, "explanation is ['x'], where a text is needed"),
        ({**ITEM, "img": "x" * 300}, f"picture images/{'x' * 73}: longer than the name of a file"),
        ({**ITEM, "img": "病" * 100}, f"picture images/{'病' * 73}: File name too long"),
    ],
)
def test_an_item_of_another_kind_does_not_stop_the_others(tmp_path: Path, item: Any, why: str) -> None:
    write(tmp_path, {"PubMed": {"test": [ITEM, item, ITEM]}})
    picture(tmp_path / "images/a.png")
    assert [one.problem for one in records(tmp_path)] == [None, why, None]


def test_a_split_that_is_no_name_of_a_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"PubMed": {"../out": [ITEM]}})
    picture(tmp_path / "images/a.png")
    (found,) = records(tmp_path)
    assert found.problem == "split is '../out', where one word is needed"


def test_something_else(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert str(error.value) == f"{path}: no such file; give the folder that holds PathMMU's data.json and images/"
    for other in ({"PubMed": [ITEM]}, {"PubMed": {"val": ITEM}}, {"PubMed": "x"}):
        write(tmp_path, other)
        with pytest.raises(DataError) as error:
            records(tmp_path)
        assert str(error.value) == f"{path}: PubMed is no table of splits; this is not PathMMU's data.json"
    for other_bytes in (b"id,question\n", b'{"PubMed": {"val": [', b'{"PubMed": {"val": ["\xff"]}}', b""):
        path.write_bytes(other_bytes)
        with pytest.raises(DataError, match="data.json: not JSON: "):
            records(tmp_path)


@pytest.mark.parametrize("other", [[ITEM], [], {}, 5])  # PathCap's file, a list, has the same name
def test_a_file_without_subsets(tmp_path: Path, other: Any) -> None:
    write(tmp_path, other)
    with pytest.raises(DataError, match=r"data.json: holds no table of subsets; give PathMMU's own file$"):
        records(tmp_path)
