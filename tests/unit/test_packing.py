"""How the samples of a step are packed into rows and passes, on any number of ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathor1.recipe import Model
from pathor1.supervised.packing import Layout, pack
from pathor1.training import Stage


def test_a_worked_example() -> None:
    """First fit, longest first: 7 + 3 and 6 + 4 fill rows of 10, 5 and 2 are left, and two ranks share three rows."""
    packed = pack([3, 7, 5, 4, 2, 6], Layout(rows=2, columns=10), 2)
    assert packed == [[[[1, 0], [2, 4]]], [[[5, 3]]]]


def test_a_rank_with_nothing_left_to_do_has_passes_all_the_same() -> None:
    assert pack([9, 9, 9], Layout(rows=1, columns=10), 2) == [[[[0]], [[2]]], [[[1]], []]]


def test_rows_are_spread_evenly_over_passes() -> None:
    """Five rows where four fit: two passes of three and two, not of four and one."""
    packed = pack([9] * 5, Layout(rows=4, columns=10), 1)
    assert [len(rows) for rows in packed[0]] == [3, 2]


def test_rows_of_a_pass_are_about_as_long_as_each_other() -> None:
    lengths = [9, 100, 8, 90, 7, 80]
    packed = pack(lengths, Layout(rows=3, columns=100), 1)
    assert packed[0] == [[[1], [3, 0], [5, 2, 4]]]
    alone = pack([60, 100, 61, 99], Layout(rows=2, columns=100), 1)
    assert alone == [[[[1], [3]], [[2], [0]]]]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80),
    rows=st.integers(1, 6),
    columns=st.integers(50, 120),
    ranks=st.integers(1, 5),
)
def test_every_sample_is_passed_once_within_the_layout(lengths: list[int], rows: int, columns: int, ranks: int) -> None:
    packed = pack(lengths, Layout(rows=rows, columns=columns), ranks)
    passes = [one for of_rank in packed for one in of_rank]
    assert sorted(number for one in passes for row in one for number in row) == list(range(len(lengths)))
    assert all(len(one) <= rows for one in passes)
    assert all(sum(lengths[number] for number in row) <= columns for one in passes for row in one)
    assert len({len(of_rank) for of_rank in packed}) == 1
    # First fit wastes less than half, and no pass is made that rows could do without.
    filled = sum(len(one) for one in passes)
    assert filled <= 2 * -(-sum(lengths) // columns)
    assert len(packed[0]) == -(-filled // (ranks * rows))


@pytest.mark.parametrize(
    ("attention", "layout"),
    [("sdpa", Layout(rows=7, columns=1000)), ("flash_attention_2", Layout(rows=1, columns=7200))],
)
def test_rows_are_as_the_attention_is(attention: str, layout: Layout) -> None:
    model = Model.model_validate({"path": "m", "attention": attention})
    assert Layout.of(model, Stage(steps=1, max_tokens=1000, max_tokens_per_pass=7200)) == layout
