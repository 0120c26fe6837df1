"""How the samples of a step are packed into rows and passes, on any number of ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathor1.recipe import Model
from pathor1.supervised.packing import SLACK, Layout, pack, places
from pathor1.training import Stage


def full_rows(rows: int, columns: int) -> Layout:
    """Rows are as long as they may be."""
    return Layout(places=rows * columns, columns=columns, masked=False)


def test_a_worked_example() -> None:
    """First fit, longest first: 7 + 3 and 6 + 4 fill rows of 10, 5 and 2 are left, and two ranks share three rows."""
    packed = pack([3, 7, 5, 4, 2, 6], full_rows(rows=2, columns=10), 2)
    assert packed == [[[[1, 0], [2, 4]]], [[[5, 3]]]]


def test_a_rank_with_nothing_left_to_do_has_passes_all_the_same() -> None:
    assert pack([9, 9, 9], full_rows(rows=1, columns=10), 2) == [[[[0]], [[2]]], [[[1]], []]]


def test_rows_are_spread_evenly_over_passes() -> None:
    """Five rows where four fit: two passes of three and two, not of four and one."""
    packed = pack([9] * 5, full_rows(rows=4, columns=10), 1)
    assert [len(rows) for rows in packed[0]] == [3, 2]


def test_rows_of_a_pass_are_about_as_long_as_each_other() -> None:
    lengths = [9, 100, 8, 90, 7, 80]
    packed = pack(lengths, full_rows(rows=3, columns=100), 1)
    assert packed[0] == [[[1], [3, 0], [5, 2, 4]]]
    alone = pack([60, 100, 61, 99], full_rows(rows=2, columns=100), 1)
    assert alone == [[[[1], [3]], [[2], [0]]]]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80),
    rows=st.integers(1, 6),
    columns=st.integers(50, 120),
    ranks=st.integers(1, 5),
)
def test_every_sample_is_passed_once_within_the_layout(lengths: list[int], rows: int, columns: int, ranks: int) -> None:
    packed = pack(lengths, full_rows(rows=rows, columns=columns), ranks)
    passes = [one for of_rank in packed for one in of_rank]
    assert sorted(number for one in passes for row in one for number in row) == list(range(len(lengths)))
    assert all(len(one) <= rows for one in passes)
    assert all(sum(lengths[number] for number in row) <= columns for one in passes for row in one)
    assert len({len(of_rank) for of_rank in packed}) == 1
    # First fit wastes less than half, and no pass is made that rows could do without.
    filled = sum(len(one) for one in passes)
    assert filled <= 2 * -(-sum(lengths) // columns)
    assert len(packed[0]) == -(-filled // (ranks * rows))


def test_masked_rows_are_as_short_as_the_longest_sample_where_that_pads_no_more() -> None:
    """Samples of one length lie alone, and a pass has room for more rows as they are shorter; others share rows."""
    layout = Layout(places=120, columns=60, masked=True)
    assert pack([20] * 6, layout, 1) == [[[[0], [1], [2], [3], [4], [5]]]]
    assert pack([20] * 7, layout, 1) == [[[[0], [1], [2], [3]], [[4], [5], [6]]]]
    # 20 + 18 + 22 fill a row of 60; rows of 30 would have 22 and 8, 20 and 10, 18 and 12 left over.
    assert pack([30, 30, 20, 18, 22], layout, 1) == [[[[0, 1], [4, 2, 3]]]]


@pytest.mark.parametrize(("last", "rows"), [(49, [[0], [1], [2]]), (48, [[0], [1], [2]]), (46, [[0, 1, 2]])])
def test_shorter_rows_may_make_a_fiftieth_more_places(last: int, rows: list[list[int]]) -> None:
    """150 places in rows of 50, beside 149, 148 and 146 in one row: 0.7, 1.4 and 2.7 % more.

    In rows of 100 the last would make 146 as well, but by two passes.
    """
    assert pack([50, 50, last], Layout(places=150, columns=150, masked=True), 1) == [[rows]]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80), rows=st.integers(1, 6), columns=st.integers(50, 120)
)
def test_masked_rows_make_hardly_more_places_and_no_more_passes(lengths: list[int], rows: int, columns: int) -> None:
    packed = pack(lengths, Layout(places=rows * columns, columns=columns, masked=True), 2)
    full = pack(lengths, full_rows(rows, columns), 2)
    assert places(lengths, packed) <= (1 + SLACK) * places(lengths, full)
    assert len(packed[0]) <= len(full[0])
    passes = [one for of_rank in packed for one in of_rank]
    assert sorted(number for one in passes for row in one for number in row) == list(range(len(lengths)))
    assert all(places(lengths, [[one]]) <= rows * columns for one in passes)
    assert len({len(of_rank) for of_rank in packed}) == 1


@pytest.mark.parametrize(
    ("attention", "layout"),
    [
        ("sdpa", Layout(places=7200, columns=1000, masked=True)),
        ("flash_attention_2", Layout(places=7200, columns=7200, masked=False)),
    ],
)
def test_rows_are_as_the_attention_is(attention: str, layout: Layout) -> None:
    model = Model.model_validate({"path": "m", "attention": attention})
    assert Layout.of(model, Stage(steps=1, max_tokens=1000, max_tokens_per_pass=7200)) == layout
