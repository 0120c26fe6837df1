"""Evaluation without a model: intervals, questions in units, pictures and options exchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathor1.errors import DataError
from pathor1.evaluation import questions
from pathor1.evaluation.intervals import wilson
from pathor1.evaluation.questions import Job, ask, chance, listing, read_unit, shuffled_pictures, value
from pathor1.samples import SCHEMA, Sample, to_row, write


def sample(number: int, *, pictures: int = 1, source: str = "a", task: str = "mcq") -> Sample:
    return Sample(
        id=f"{source}/{number}",
        source=source,
        task=task,  # type: ignore[arg-type]
        question="Which?",
        options=("x", "y", "z", "w") if task == "mcq" else None,
        answer="B" if task == "mcq" else "yes",
        images=tuple(f"{number}-{place}".encode() for place in range(pictures)),
    )


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # As scipy says: binomtest and its proportion_ci, by the method "wilson".
        (50, 100, 0.40383, 0.59617),
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (1, 1, 0.20654, 1.0),
        (340, 400, 0.81169, 0.88166),
    ],
)
def test_wilsons_interval(right: int, n: int, low: float, high: float) -> None:
    share = wilson(right, n)
    assert (share.value, share.n) == (right / n, n)
    assert (share.low, share.high) == pytest.approx((low, high), abs=2e-5)


@pytest.mark.parametrize(("right", "n"), [(0, 0), (2, 1), (-1, 3)])
def test_a_share_of_nothing_is_refused(right: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{right} right of {n}"):
        wilson(right, n)


def test_units_hold_every_question_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "WINDOW", 4)
    first = [sample(number) for number in range(6)] + [sample(6, task="yes_no")] + [sample(7)]
    second = [sample(number, source="b") for number in range(3)]
    # Row groups of three, as other writers may have them; a unit holds whole ones.
    table = pa.Table.from_pylist(list(map(to_row, first)), schema=SCHEMA)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    write(second, tmp_path / "b.parquet")
    paths = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    found = listing(paths, tasks=["mcq"])
    asked = [*first[:6], first[7], *second]
    assert [replace(one, images=()) for one in asked] == list(found.samples)
    assert [unit.rows for unit in found.units] == [((0, (0, 1, 2)), (1, (0, 1, 2))), ((2, (1,)),), ((0, (0, 1, 2)),)]
    windows = [window for unit in found.units for window in read_unit(unit)]
    assert [len(window) for window in windows] == [4, 2, 1, 3]
    assert [one for window in windows for one in window] == asked, "with their pictures"
    both = listing(paths, tasks=["mcq", "yes_no"], first=2)
    assert [one.id for one in both.samples] == ["a/0", "a/1", "b/0", "b/1"]
    assert [len(window) for unit in both.units for window in read_unit(unit)] == [2, 2]
    assert both.digest != found.digest


def test_only_questions_that_are_as_wanted_are_listed(tmp_path: Path) -> None:
    kept = [replace(sample(n), meta={"organ": ["skin", "lung", 3][n % 3]}, subfield="ihc") for n in range(6)]
    write([*kept, sample(9)], tmp_path / "a.parquet")
    path = [str(tmp_path / "a.parquet")]
    found = listing(path, tasks=["mcq"], where={"meta.organ": ["lung", "3"], "subfield": ["ihc"]})
    assert [one.id for one in found.samples] == ["a/1", "a/2", "a/4", "a/5"]
    assert [value(one, "meta.organ") for one in found.samples] == ["lung", "3", "lung", "3"]
    assert value(sample(9), "meta.organ") == value(sample(9), "subfield") == "-"
    with pytest.raises(
        DataError, match=r"no sample has a task among data.tasks \(mcq\) and is as benchmark.where says"
    ):
        listing(path, tasks=["mcq"], where={"source": ["b"]})


def test_ids_have_to_be_unique_in_all_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write([sample(0), sample(1, source=name)], tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match="sample id 'a/0' comes twice"):
        listing([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")], tasks=["mcq"])


@pytest.mark.parametrize("seed", range(20))
def test_no_question_keeps_its_pictures_and_each_gets_as_many(seed: int) -> None:
    asked = [sample(n) for n in range(5)] + [sample(n, pictures=2) for n in range(5, 7)] + [sample(9, pictures=3)]
    given = shuffled_pictures(asked, np.random.default_rng(seed))
    # The only question with three pictures has nobody to exchange with.
    assert [one.id for one in given] == [one.id for one in asked[:7]]
    for before, after in zip(asked, given, strict=False):
        assert after.images != before.images
        assert len(after.images) == len(before.images)
        assert replace(after, images=before.images) == before
    assert sorted(one.images for one in given) == sorted(one.images for one in asked[:7])


def test_questions_without_pictures_or_alone_are_left_out() -> None:
    rng = np.random.default_rng(0)
    assert shuffled_pictures([sample(1), sample(2, pictures=0), sample(3, pictures=0)], rng) == []


def test_chance() -> None:
    assert chance(sample(1)) == 0.25
    assert chance(sample(1, task="yes_no")) == 0.5


def test_several_questions_about_one_picture_do_not_get_it_from_each_other() -> None:
    same = [replace(sample(number), images=(b"one",)) for number in range(4)]
    assert shuffled_pictures(same, np.random.default_rng(0)) == []
    given = shuffled_pictures([*same, sample(9)], np.random.default_rng(0))
    assert {one.id: one.images for one in given if one.id != "a/9"} in (
        {f"a/{number}": (b"9-0",)} for number in range(4)
    )


@pytest.mark.parametrize("options", [("x", "y"), ("x", "y", "z", "w", "v", "u")])
def test_options_are_shuffled_so_that_the_right_one_has_another_letter(options: tuple[str, ...]) -> None:
    orders = set()
    for seed in range(30):
        asked = replace(sample(seed), options=options)
        (found,) = ask("shuffled_options", [asked], seed=1)
        assert sorted(found.options or ()) == sorted(options)
        assert found.answer != asked.answer
        assert (found.options or ())["ABCDEF".index(found.answer)] == "y"
        assert [found] == ask("shuffled_options", [asked], seed=1), "the same each time"
        orders.add(found.options)
    assert len(orders) == 1 if len(options) == 2 else len(orders) > 10


def test_what_cannot_be_asked_so_is_left_out() -> None:
    window = [sample(0), sample(1, pictures=0), sample(2, task="yes_no")]
    assert [(one.id, one.images) for one in ask("removed_pictures", window, seed=0)] == [("a/0", ()), ("a/2", ())]
    assert [one.id for one in ask("shuffled_options", window, seed=0)] == ["a/0", "a/1"]
    assert ask("greedy", window, seed=0) == ask("sampled", window, seed=0) == window


def test_a_job_leaves_out_what_is_answered_and_exchanges_as_if_it_were_not(tmp_path: Path) -> None:
    write([sample(number) for number in range(8)], tmp_path / "a.parquet")
    (unit,) = listing([str(tmp_path / "a.parquet")], tasks=["mcq"]).units

    def read(answered: set[str]) -> list[Sample]:
        job = Job(kind="shuffled_pictures", unit=unit, tasks=("mcq",), answered=frozenset(answered), seed=3)
        return [asked.sample for window in job.read() for asked in window]

    whole = read(set())
    assert len(whole) == 8
    assert read({"a/0", "a/5"}) == [one for one in whole if one.id not in ("a/0", "a/5")]
