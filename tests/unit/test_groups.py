"""Which groups are learned from, how many are asked for, and what becomes of the others."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathor1.rl.groups import Group, Pool, Rules, joined, verdict

RULES = Rules(batch=4, dynamic=True, budget=16, min_groups=1, max_carry_steps=1)
RIGHT, WRONG, MIXED = (1.0, 1.0), (0.0, 0.0), (0.0, 1.0)


def group(number: int, accuracies: tuple[float, ...] = MIXED, *, step: int = 1, error: str | None = None) -> Group:
    return Group(number=number, sample=f"s{number}", step=step, accuracies=accuracies, error=error)


def run_step(pool: Pool, step: int, outcomes: list[tuple[float, ...]], numbers: itertools.count[int]) -> list[int]:
    """Plays a step in which groups finish at once; returns how many were asked for each time."""
    asked: list[int] = []
    pool.begin(step)
    while not pool.done(pool.left):
        if count := pool.wanted():
            asked.append(count)
            pool.ask(count)
        pool.add(group(next(numbers), outcomes.pop(0) if outcomes else MIXED, step=step))
    return asked


@pytest.mark.parametrize(
    ("accuracies", "reason"),
    [
        ((1.0, 1.0, 1.0), "all_correct"),
        ((0.0, 0.0, 0.0), "all_wrong"),
        ((0.0, 0.0, 1.0), None),
        ((0.25, 0.25 + 9e-7, 0.25), "all_wrong"),
        ((0.25, 0.25 + 2e-6, 0.25), None),
    ],
)
def test_only_a_difference_in_raw_accuracy_teaches(accuracies: tuple[float, ...], reason: str | None) -> None:
    assert verdict(group(0, accuracies), RULES) == reason
    assert verdict(group(0, accuracies), replace(RULES, dynamic=False)) is None


@pytest.mark.parametrize(
    ("right", "reason"), [(1, "outside_band"), (2, None), (5, None), (6, None), (7, "outside_band")]
)
def test_a_band_of_the_pass_rate_keeps_its_ends(right: int, reason: str | None) -> None:
    rules = replace(RULES, band=(0.25, 0.75))
    assert verdict(group(0, (1.0,) * right + (0.0,) * (8 - right)), rules) == reason


def test_a_group_that_failed_is_neither_right_nor_wrong() -> None:
    assert verdict(group(0, (), error="boom"), RULES) == "failed"
    assert verdict(group(0, (), error="boom"), replace(RULES, dynamic=False)) == "failed"


def test_a_batch_of_informative_groups_asks_for_no_more() -> None:
    pool = Pool(RULES)
    assert run_step(pool, 1, [], itertools.count()) == [4]
    taken = pool.take(4)
    assert [each.number for each in taken.groups] == [0, 1, 2, 3]
    assert (taken.asked, taken.dropped, taken.carried) == (4, (), ())


@pytest.mark.parametrize("failing", [0, 3])
def test_without_dynamic_sampling_each_failed_group_is_replaced_by_one(failing: int) -> None:
    pool = Pool(replace(RULES, dynamic=False))
    pool.begin(1)
    pool.ask(pool.wanted())
    asked: list[int] = []
    for number in range(4):
        pool.add(group(number, (), error="boom") if number == failing else group(number, WRONG))
        asked.append(pool.wanted())
    assert asked == [int(number >= failing) for number in range(4)]
    pool.ask(1)
    pool.add(group(4, WRONG))
    assert pool.done(4)
    assert len(pool.take(4).groups) == 4
    assert pool.share == 1.0


def test_groups_are_replaced_as_they_turn_out_empty_and_each_drop_has_its_reason() -> None:
    pool = Pool(RULES)
    run_step(pool, 1, [RIGHT, MIXED, WRONG, MIXED, MIXED, WRONG], itertools.count())
    taken = pool.take(4)
    assert [each.number for each in taken.groups] == [1, 3, 4, 6]
    assert [(each.group.number, each.reason) for each in taken.dropped] == [
        (0, "all_correct"),
        (2, "all_wrong"),
        (5, "all_wrong"),
    ]


def test_a_set_without_a_difference_ends_at_the_budget_with_nothing() -> None:
    pool = Pool(RULES)
    asked = run_step(pool, 1, [WRONG] * 99, itertools.count())
    taken = pool.take(4)
    assert sum(asked) == taken.asked == 16
    assert taken.groups == taken.carried == ()
    assert Counter(each.reason for each in taken.dropped) == {"all_wrong": 16}


def test_exactly_one_informative_group_is_learned_from_alone_or_waits() -> None:
    outcomes = [*[WRONG] * 5, MIXED, *[RIGHT] * 20]
    alone = Pool(RULES)
    run_step(alone, 1, list(outcomes), itertools.count())
    assert [each.number for each in alone.take(4).groups] == [5]

    waiting = Pool(replace(RULES, min_groups=2))
    numbers = itertools.count()
    run_step(waiting, 1, list(outcomes), numbers)
    taken = waiting.take(4)
    assert taken.groups == ()
    assert [each.number for each in taken.carried] == [5]
    run_step(waiting, 2, [], numbers)
    assert waiting.take(4).groups[0].number == 5

    dropping = Pool(replace(RULES, min_groups=2, max_carry_steps=0))
    run_step(dropping, 1, list(outcomes), itertools.count())
    taken = dropping.take(4)
    assert (taken.groups, taken.carried) == ((), ())
    assert Counter(each.reason for each in taken.dropped) == {"all_wrong": 5, "all_correct": 10, "budget": 1}


def test_what_is_left_over_comes_first_in_the_next_step_and_fewer_are_asked_for() -> None:
    pool = Pool(RULES)
    pool.begin(1)
    pool.ask(4)
    pool.ask(3)  # more than were needed, as it turned out
    for number in range(7):
        pool.add(group(number))
    taken = pool.take(4)
    assert [each.number for each in taken.carried] == [4, 5, 6]
    assert taken.dropped == ()
    assert run_step(pool, 2, [], itertools.count(7)) == [1]
    assert [each.number for each in pool.take(4).groups] == [4, 5, 6, 7]


def test_what_has_waited_too_long_is_stale() -> None:
    pool = Pool(replace(RULES, min_groups=4, budget=4))
    numbers = itertools.count()
    for step in (1, 2, 3):
        run_step(pool, step, [MIXED, WRONG, WRONG, WRONG], numbers)
        taken = pool.take(4)
        assert taken.groups == ()
        stale = [each.group.number for each in taken.dropped if each.reason == "stale"]
        assert stale == ([] if step < 3 else [0])


def test_after_a_step_in_which_half_were_empty_about_twice_as_many_are_asked_for_at_once() -> None:
    pool = Pool(replace(RULES, batch=16, budget=64))
    numbers = itertools.count()
    for step in range(1, 5):
        asked = run_step(pool, step, [MIXED, WRONG] * 40, numbers)
        waited = len(pool.take(16).carried)
    assert 24 <= asked[0] + waited <= 32


outcome = st.sampled_from([RIGHT, WRONG, MIXED, MIXED])


@given(
    st.lists(outcome, max_size=200),
    st.integers(1, 6),
    st.floats(1, 5),
    st.integers(0, 2),
    st.integers(0, 2**16),
)
def test_every_group_is_learned_from_or_dropped_once_and_no_step_goes_beyond_its_bounds(
    outcomes: list[tuple[float, ...]], batch: int, factor: float, carry: int, seed: int
) -> None:
    """Whatever finishes when: groups under way finish in any order, between askings."""
    budget = int(batch * factor)
    rules = Rules(batch=batch, dynamic=True, budget=budget, min_groups=1, max_carry_steps=carry)
    pool, rng = Pool(rules), random.Random(seed)
    made: dict[int, Group] = {}
    ended: Counter[int] = Counter()
    for step in range(1, 6):
        pool.begin(step)
        under_way: list[Group] = []
        while not pool.done(batch):
            count = pool.wanted()
            pool.ask(count)
            for _ in range(count):
                made[len(made)] = group(
                    len(made), outcomes[len(made) % len(outcomes)] if outcomes else WRONG, step=step
                )
                under_way.append(made[len(made) - 1])
            pool.add(under_way.pop(rng.randrange(len(under_way))))
        taken = pool.take(batch)
        assert taken.asked <= budget
        assert len(taken.groups) <= batch
        assert len(taken.carried) <= batch
        assert [each.number for each in taken.groups] == sorted(each.number for each in taken.groups)
        assert all(verdict(each, rules) is None and step - each.step <= carry for each in taken.groups)
        ended.update(each.number for each in taken.groups)
        ended.update(each.group.number for each in taken.dropped)
        if carry:  # what has a difference is never dropped while it may wait: no more than a batch is ever left over
            lost = [each for each in taken.dropped if each.reason in ("stale", "budget")]
            assert lost == []
    ended.update(each.number for each in pool.waiting)
    assert ended == Counter(dict.fromkeys(made, 1))


AHEAD = replace(RULES, dynamic=False, max_carry_steps=2, ahead=4, steps=9)


def test_what_is_asked_ahead_is_learned_from_without_waiting_for_what_is_under_way() -> None:
    pool = Pool(AHEAD)
    pool.begin_ahead(1)
    assert pool.wanted() == 4
    pool.ask(4)
    pool.begin(1)
    assert pool.wanted() == 4
    pool.ask(4)
    for number in (7, 2, 5):
        pool.add(group(number))
    assert not pool.done(4)
    pool.add(group(4))
    assert pool.done(4)
    taken = pool.take(4)
    assert [each.number for each in taken.groups] == [2, 4, 5, 7]
    assert (taken.asked, taken.carried, pool.under_way) == (8, (), 4)
    pool.begin(2)
    assert pool.wanted() == 4
    pool.ask(4)
    for number in (0, 1, 3, 6):
        pool.add(group(number))
    assert pool.take(4).asked == 4


def test_nobody_learns_from_what_is_asked_beyond_the_last_step() -> None:
    pool = Pool(replace(AHEAD, ahead=6, steps=2))
    pool.begin_ahead(1)
    assert pool.wanted() == 4
    pool.ask(4)
    pool.begin(1)
    pool.ask(pool.wanted())
    for number in range(8):
        pool.add(group(number))
    assert len(pool.take(4).groups) == 4
    pool.begin(2)
    assert pool.wanted() == 0
    assert pool.done(4)
    assert [each.number for each in pool.take(4).groups] == [4, 5, 6, 7]


def test_a_step_waits_for_what_would_be_too_old_for_any_later_one() -> None:
    pool = Pool(replace(AHEAD, max_carry_steps=1))
    pool.begin_ahead(1)
    pool.ask(pool.wanted())
    pool.begin(1)
    pool.ask(pool.wanted())
    for number in range(1, 5):
        pool.add(group(number))
    assert pool.done(4), "the four others can be learned from in step 2"
    assert len(pool.take(4).groups) == 4
    pool.begin(2)
    pool.ask(pool.wanted())
    for number in (8, 9, 10, 11):
        pool.add(group(number, step=2))
    for number in (0, 5, 6):
        assert not pool.done(4), "of step 1's some are under way"
        pool.add(group(number))
    pool.add(group(7))
    assert pool.done(4)
    assert [each.number for each in pool.take(4).groups] == [0, 5, 6, 7]


def test_a_step_may_learn_in_parts_and_tells_of_them_together() -> None:
    pool = Pool(AHEAD)
    pool.begin(1)
    pool.ask(pool.wanted())
    for number in range(3):
        pool.add(group(number))
    parts = [pool.take(2)]
    assert [each.number for each in parts[0].carried] == [2]
    assert not pool.done(2)
    pool.add(group(3, (), error="boom"))
    assert pool.wanted() == 1
    pool.ask(1)
    pool.add(group(8))
    assert pool.done(2)
    parts.append(pool.take(2))
    whole = joined(parts)
    assert [each.number for each in whole.groups] == [0, 1, 2, 8]
    assert [(each.group.number, each.reason) for each in whole.dropped] == [(3, "failed")]
    assert (whole.asked, whole.carried) == (9, ())


@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.floats(0, 3),
    st.booleans(),
    st.integers(1, 2),
    st.integers(0, 2**16),
)
def test_asked_ahead_every_group_is_learned_from_in_time_or_dropped_once(
    batch: int, carry: int, batches: float, dynamic: bool, parts: int, seed: int
) -> None:
    """Whatever finishes when, nothing that has a difference is dropped, and nothing is older than it may be."""
    batch *= parts
    ahead = int(min(batches, carry) * batch)
    steps, budget = 6, 4 * batch
    rules = Rules(
        batch=batch, dynamic=dynamic, budget=budget, min_groups=1, max_carry_steps=carry, ahead=ahead, steps=steps
    )
    pool, rng = Pool(rules), random.Random(seed)
    made: list[Group] = []
    under_way: list[Group] = []
    ended: Counter[int] = Counter()

    def ask() -> None:
        count = pool.wanted()
        pool.ask(count)
        for _ in range(count):
            mixed = not dynamic or rng.random() < 0.8
            made.append(group(len(made), MIXED if mixed else WRONG, step=pool.step))
            under_way.append(made[-1])

    pool.begin_ahead(1)
    pool.step = 1
    ask()
    for step in range(1, steps + 1):
        pool.begin(step)
        for _ in range(parts):
            count = batch // parts
            while not pool.done(count):
                ask()
                # Mostly what was asked last finishes first.
                place = -1 if rng.random() < 0.7 else rng.randrange(len(under_way))
                pool.add(under_way.pop(place))
            taken = pool.take(count)
            assert len(taken.groups) <= count
            assert all(step - each.step <= carry for each in taken.groups)
            ended.update(each.number for each in taken.groups)
            ended.update(each.group.number for each in taken.dropped)
            assert not [each for each in taken.dropped if each.reason in ("stale", "budget")]
            if not dynamic:
                assert len(taken.groups) == count
        assert pool.asked <= budget
    ended.update(each.number for each in pool.waiting)
    assert ended == Counter(dict.fromkeys((each.number for each in made if each not in under_way), 1))
    if not dynamic:
        assert under_way == pool.waiting == []
        assert len(made) == steps * batch
