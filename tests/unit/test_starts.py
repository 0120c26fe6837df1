"""Which reward function a run starts with, and which it goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathor1 import checkpoints
from pathor1.attempts import ATTEMPT
from pathor1.data.sources import sources
from pathor1.errors import RecipeError
from pathor1.recipe import Recipe
from pathor1.rl import starts
from pathor1.samples import Sample, write

GRADE = "def grade(text, answer, sample): return {} * (sample['meta']['organ'] == 'skin')"


def recipe(folder: Path, function: str | None) -> Recipe:
    reward = {} if function is None else {"function": function}
    return Recipe.model_validate(
        {
            "name": "run",
            "runs_dir": str(folder),
            "model": {"path": "m"},
            "data": {"train": [str(folder / "train.parquet")]},
            "rl": {"steps": 1, "reward": reward},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sample = Sample(
        id="a",
        source="s",
        task="mcq",
        question="?",
        options=("x", "y"),
        answer="B",
        images=(b"not looked at",),
        meta={"organ": "skin"},
    )
    write([sample], tmp_path / "train.parquet")
    (tmp_path / "mine.py").write_text(GRADE.format(1))
    return tmp_path


def source(asked: Recipe) -> str | None:
    found = starts.reward(asked, sources(asked.data))
    assert found is not None
    assert found.sample["meta"] == {"organ": "skin"}, "it is tried with one of the run's samples"
    return found.program.source


def test_the_file_counts_at_a_start_and_the_kept_one_afterwards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(folder, f"{folder}/mine.py:grade")
    run = starts.folder(asked)
    run.path.mkdir()
    run.reward_function.write_text(GRADE.format(0.5))
    assert source(asked) == GRADE.format(1), "what is kept there is from a start that came to nothing"
    monkeypatch.setenv(ATTEMPT, "2")
    assert source(asked) == GRADE.format(0.5)
    monkeypatch.delenv(ATTEMPT)
    path = checkpoints.folder(run.checkpoints, 1)
    path.mkdir(parents=True)
    (path / checkpoints.MANIFEST).write_text("{}")
    assert source(asked) == GRADE.format(0.5)


def test_none_is_the_built_in_rule_and_one_that_fails_stops_the_start(folder: Path) -> None:
    asked = recipe(folder, None)
    assert starts.reward(asked, sources(asked.data)) is None
    asked = recipe(folder, f"{folder}/mine.py:other")
    with pytest.raises(
        RecipeError, match=r"raised AttributeError: .*mine.py has no other; it was tried with .*>B</ans"
    ):
        starts.reward(asked, sources(asked.data))
