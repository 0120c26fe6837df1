"""Evaluation without a model: intervals, questions in windows, pictures exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pathor1.errors import DataError, RecipeError
from pathor1.evaluation import questions
from pathor1.evaluation.intervals import wilson
from pathor1.evaluation.questions import chance, shuffled_pictures, windows
from pathor1.evaluation.run import accuracy, evaluate, table
from pathor1.recipe import load
from pathor1.samples import Sample, write

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "ray_jobs" / "recipes" / "demo_grpo.toml"


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


def test_windows_hold_every_question_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "WINDOW", 4)
    first = [sample(number) for number in range(6)] + [sample(6, task="yes_no")]
    second = [sample(number, source="b") for number in range(3)]
    write(first, tmp_path / "a.parquet")
    write(second, tmp_path / "b.parquet")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    found = list(windows(paths, tasks=["mcq"]))
    assert [len(window) for window in found] == [4, 2, 3]
    assert [one for window in found for one in window] == first[:6] + second
    ids = [[one.id for one in window] for window in windows(paths, tasks=["mcq", "yes_no"], first=2)]
    assert ids == [["a/0", "a/1"], ["b/0", "b/1"]]


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


@pytest.mark.parametrize(
    ("text", "task", "worth"),
    [
        ("<think>x</think><answer>B</answer>", "mcq", 1.0),
        ("<think>x</think><answer>A</answer>", "mcq", 0.0),
        ("B", "mcq", 0.0),
        ("<answer>Yes</answer>", "yes_no", 1.0),
        ("<answer>B</answer>", "yes_no", 0.0),
    ],
)
def test_accuracy_is_the_reward(text: str, task: str, worth: float) -> None:
    assert accuracy(text, sample(1, task=task)) == worth


def recipe(tmp_path: Path, *test: Path) -> Sequence[str]:
    return [f"runs_dir={tmp_path}", f"data.test={[str(path) for path in test]}"]


def test_evaluating_on_what_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.test names no file"):
        evaluate(load(DEMO, ["data.test=[]"]), {})
    with pytest.raises(DataError, match="no such file"):
        evaluate(load(DEMO, recipe(tmp_path, tmp_path / "gone.parquet")), {})
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_line_for_each_model_and_set() -> None:
    def share(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 8}

    sets = {"rendered": share(0.5), "ihc": share(0.25)}
    results = {
        "accuracy": {"base": sets, "final": sets},
        "format": {"base": sets, "final": sets},
        "accuracy_sampled": {"base": sets, "final": sets},
        "accuracy_shuffled_pictures": {"base": {"rendered": share(0.125)}, "final": {}},
        "chance": {"rendered": 0.25, "ihc": 0.375},
    }
    lines = table(results).splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["base", "rendered"],
        ["base", "ihc"],
        ["final", "rendered"],
        ["final", "ihc"],
    ]
    assert "50.0% (40.0% to 60.0%)" in lines[1]
    assert lines[1].endswith("12.5%")
    assert lines[2].endswith("-"), "no pictures could be exchanged"
    assert lines[5].startswith("on 8 rendered, 8 ihc held-out questions")
    assert lines[5].endswith("rendered 25.0%, ihc 37.5%")
