"""The record of how each question has gone, and how settled ones come less often."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from pathor1.rl.groups import Group, Pool, Rules
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
    assert again.passed_over == 1
    assert [again.pass_over("solved") for _ in range(3)] == [True, False, True]
    assert again.passed_over == 3, "counted on over the whole run"
    again.begin()
    assert [again.pass_over("solved") for _ in range(3)] == [True, False, True]
    again.rewind()
    assert again.passed_over == 3, "what a step that is given up passed over comes again, and is counted then"


def groups_trained(revisit_every: int, *, steps: int) -> float:
    """The share of the groups asked for that is learned from, where half of 64 questions are never answered right."""
    questions, chance = Questions(revisit_every=revisit_every), random.Random(0)
    pool = Pool(Rules(batch=8, dynamic=True, budget=32, min_groups=1, max_carry_steps=2))
    coming = (place for _ in range(1000) for place in chance.sample(range(64), 64))
    number, asked, trained = itertools.count(), 0, 0
    for step in range(1, steps + 1):
        pool.begin(step)
        under_way: list[int] = []
        while not pool.done(pool.left):
            wanted = pool.wanted()
            pool.ask(wanted)
            under_way += itertools.islice((place for place in coming if not questions.pass_over(str(place))), wanted)
            place = under_way.pop(0)
            accuracies = tuple(float(place >= 32 and chance.random() < 0.25) for _ in range(8))
            pool.add(Group(number=next(number), sample=str(place), step=step, accuracies=accuracies))
        taken = pool.take(pool.left)
        assert not {each.reason for each in taken.dropped} - {"all_wrong", "all_correct"}, "no informative one is lost"
        for group in (*taken.groups, *(each.group for each in taken.dropped)):
            questions.add(group)
        asked, trained = asked + taken.asked, trained + len(taken.groups)
    return trained / asked


def test_what_has_no_signal_costs_less_from_the_second_epoch_on() -> None:
    assert groups_trained(4, steps=2) == groups_trained(1, steps=2), "in the first epoch nothing is known"
    assert groups_trained(4, steps=16) > 1.3 * groups_trained(1, steps=16)
