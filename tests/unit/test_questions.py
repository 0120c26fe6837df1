"""The record of how each question has gone, and how settled ones come less often."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathor1.rl.groups import Group
from pathor1.rl.questions import Question, Questions


def asked(questions: Questions, sample: str, *accuracies: float, step: int = 1) -> None:
    questions.add(Group(number=0, sample=sample, step=step, accuracies=accuracies))


def test_the_mean_is_over_all_rollouts_of_all_attempts() -> None:
    questions = Questions()
    asked(questions, "a", 1.0, 0.0, 0.0, 0.0, step=3)
    asked(questions, "a", 1.0, 1.0, 0.0, 0.0, step=9)
    asked(questions, "a", 1.0, 1.0, 1.0, 1.0, step=12)
    found = questions.records["a"]
    assert (found.attempts, found.last_step) == (3, 12)
    assert found.mean_accuracy == pytest.approx((0.25 + 0.5 + 1.0) / 3)


def test_only_what_was_always_right_or_always_wrong_is_passed_over() -> None:
    questions = Questions(revisit_every=3)
    asked(questions, "solved", 1.0, 1.0)
    asked(questions, "failed", 0.0, 0.0)
    asked(questions, "open", 1.0, 0.0)
    asked(questions, "turned", 0.0, 0.0)
    asked(questions, "turned", 1.0, 0.0)
    for name, expected in (("solved", True), ("failed", True), ("open", False), ("turned", False), ("new", False)):
        assert [questions.pass_over(name) for _ in range(6)] == [expected, expected, False] * 2, name


def test_by_default_nothing_is_passed_over() -> None:
    questions = Questions()
    asked(questions, "solved", 1.0, 1.0)
    assert not any(questions.pass_over("solved") for _ in range(5))


def test_a_record_comes_back_with_its_place_between_two_askings(tmp_path: Path) -> None:
    questions = Questions(revisit_every=3)
    asked(questions, "solved", 1.0, 1.0, step=4)
    questions.pass_over("solved")
    questions.save(tmp_path)
    again = Questions(revisit_every=3)
    again.load(tmp_path)
    assert again.records == {"solved": Question(id="solved", attempts=1, mean_accuracy=1.0, last_step=4, passed_over=1)}
    assert [again.pass_over("solved") for _ in range(3)] == [True, False, True]
