"""ARCH: both sets, one of them, and pictures that are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from formats import png

from pathor1.clip.embed import Row
from pathor1.clip.evaluation import _wanted
from pathor1.contrastive import load_evaluation
from pathor1.data import formats
from pathor1.data.formats.arch import records
from pathor1.errors import DataError
from pathor1.samples import Sample

BOOKS = {
    "0": {"figure_id": "00", "letter": "A", "caption": "Granuloma. ", "uuid": "u0"},
    "1": {"figure_id": "00", "letter": "Single", "caption": "Same figure.", "uuid": "u1"},
    "10": {"figure_id": "01", "letter": "B", "caption": "Missing.", "uuid": "u2"},
}
PUBMED = {"0": {"caption": "Mitoses.", "uuid": "p0"}}


def write(folder: Path, captions: object, *pictures: str) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    for seed, name in enumerate(pictures):
        (folder / "images" / name).write_bytes(png(seed))


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "books_set", BOOKS, "u0.png", "u1.jpg")
    write(tmp_path / "pubmed_set", PUBMED, "p0.jpg")
    return tmp_path


def test_captions_of_both_sets(source):
    found = list(formats.load("arch").records(source))
    assert [each.where for each in found] == [
        "books_set/captions.json, 0",
        "books_set/captions.json, 1",
        "books_set/captions.json, 10",
        "pubmed_set/captions.json, 0",
    ]
    assert found[0].sample == Sample(
        id="arch/books_set/train/0",
        source="ARCH",
        task="caption",
        question="",
        answer="Granuloma.",
        split="train",
        meta={"set": "books_set", "uuid": "u0", "figure_id": "00", "letter": "A", "pictures_of_figure": 2},
        license="CC-BY-NC-SA-4.0",
    )
    assert found[3].sample is not None
    assert (found[3].sample.id, found[3].sample.answer) == ("arch/pubmed_set/train/0", "Mitoses.")
    assert found[3].sample.meta == {"set": "pubmed_set", "uuid": "p0"}
    assert [each.pictures for each in found] == [
        (source / "books_set/images/u0.png",),
        (source / "books_set/images/u1.jpg",),
        (),
        (source / "pubmed_set/images/p0.jpg",),
    ]


def test_the_evaluation_takes_figures_of_one_picture(source):
    recipe = Path(__file__).parents[2] / "ray_jobs/recipes/clip/evaluation.toml"
    where = load_evaluation(recipe).retrieval["ARCH"].where
    write(source / "books_set", BOOKS, "u0.png", "u1.jpg", "u2.png")
    samples = [each.sample for each in records(source)]
    rows = [Row(id=one.id, file="f", caption="c", picture="p", meta=one.meta) for one in samples]
    assert [row.id for row in rows if _wanted(row, where)] == ["arch/books_set/train/10"]
    assert all(_wanted(row, {}) for row in rows)


def test_one_set_has_the_ids_that_it_has_beside_the_other(source):
    both = list(records(source))
    assert list(records(source / "books_set")) == both[:3]
    assert list(records(source / "pubmed_set")) == both[3:]
    (source / "books_set").rename(source / "elsewhere")
    assert list(records(source)) == both[3:]
    (source / "pubmed_set").rename(source / "inner")  # as unpacking pubmed_set.zip in a folder of that name leaves it
    (source / "pubmed_set").mkdir()
    (source / "inner").rename(source / "pubmed_set/pubmed_set")
    assert [each.where for each in records(source / "pubmed_set")] == ["pubmed_set/captions.json, 0"]


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (BOOKS["10"], "picture images/u2.png or images/u2.jpg: not in SOURCE"),
        ({"caption": "x"}, "no field uuid; it has caption"),
        ({"uuid": "u0"}, "no field caption; it has uuid"),
        ({"uuid": "u0", "caption": None}, "caption is null"),
        ("x", "of type str, where a table of fields is needed"),
    ],
)
def test_items_that_cannot_be_used_say_why(source, item, why):
    write(source / "books_set", {"0": BOOKS["0"], "7": item, "1": BOOKS["1"]})
    first, second, third = records(source / "books_set")
    assert (first.problem, third.problem) == (None, None)
    assert second.where == "books_set/captions.json, 7"
    assert second.problem == why.replace("SOURCE", str(source / "books_set"))


def test_another_source_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds neither books_set nor pubmed_set; give the folder of both, or one of"):
        next(records(tmp_path))
    (tmp_path / "books_set").mkdir()
    for source in (tmp_path, tmp_path / "books_set"):
        with pytest.raises(DataError, match=r"books_set/captions.json: no such file; give the whole set, unpacked"):
            next(records(source))
    write(tmp_path / "books_set", [BOOKS["0"]])
    with pytest.raises(DataError, match=r"captions.json: is no table of captions; give ARCH's own file"):
        next(records(tmp_path))
    (tmp_path / "books_set/captions.json").write_bytes(b'{"0": "\xff"}')
    with pytest.raises(DataError, match=r"captions.json: not JSON"):
        next(records(tmp_path))
