"""Exercises in reading options."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pathor1.data import exercises
from pathor1.data.rendered import render
from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample, read, write

OPEN = Sample(id="open", source="s", task="open", question="What is it?", answer="A lipoma.")


def test_each_multiple_choice_sample_gives_one_without_its_picture_or_its_question(tmp_path: Path) -> None:
    source = render(tmp_path, seed=3, counts={"warm_start": 80}, options=(2, 6))["warm_start"]
    assert exercises.make([source], tmp_path / "exercises.parquet", seed=1) == 80
    for made, asked in zip(read(tmp_path / "exercises.parquet"), read(source), strict=True):
        assert asked.options is not None
        option = asked.options[LETTERS.index(made.answer)]
        assert made.options == asked.options
        assert (made.question, made.explanation) == (f"Which is {option}?", f"fits {option} {made.answer}")
        assert (made.images, made.meta, made.split) == ((), None, "exercises")
        assert made.id == f"{asked.id}/exercise"


def test_every_letter_is_asked_for_equally_often(tmp_path: Path) -> None:
    one = Sample(id="0", source="s", task="mcq", question="?", options=("a", "b", "c", "d"), answer="A")
    write([replace(one, id=str(number)) for number in range(1000)], tmp_path / "all-a.parquet")
    made = exercises.exercises([tmp_path / "all-a.parquet"], seed=0)
    letters = Counter(sample.answer for sample in made)
    assert all(200 < letters[letter] < 300 for letter in "ABCD"), letters


def test_what_has_no_options_is_passed_over(tmp_path: Path) -> None:
    write([OPEN], tmp_path / "open.parquet")
    with pytest.raises(DataError, match="no samples to write"):
        exercises.make([tmp_path / "open.parquet"], tmp_path / "out.parquet", seed=0)
    assert not (tmp_path / "out.parquet").exists()
