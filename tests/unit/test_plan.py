"""The order of an epoch, which is a pure function of row groups, seed and epoch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from questions import rows_of

from pathor1.data.plan import BLOCK_BYTES, plan
from pathor1.data.row_groups import RowGroup

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12)
seeds = st.integers(0, 2**32)
epochs = st.integers(0, 1000)


def groups_of(sizes: Sequence[int], *, rows_a_block: int = 32) -> list[RowGroup]:
    """Row groups of so many rows; together, `rows_a_block` rows are as much as a block may hold."""
    row = BLOCK_BYTES // rows_a_block
    return [
        RowGroup(file=f"{index // 3}.parquet", index=index % 3, rows=rows, size=rows * row)
        for index, rows in enumerate(sizes)
    ]


@given(sizes, seeds, epochs, st.booleans())
@settings(deadline=None)
def test_every_row_of_every_file_once_an_epoch(sizes: list[int], seed: int, epoch: int, shuffle: bool) -> None:
    groups = groups_of(sizes)
    blocks = plan(groups, seed=seed, epoch=epoch, shuffle=shuffle)
    every = [(group.file, group.index, row) for group in groups for row in range(group.rows)]
    assert sorted(rows_of(blocks)) == sorted(every)
    assert all(sorted(block.order().tolist()) == list(range(block.rows)) for block in blocks)


@given(sizes, seeds, epochs, st.booleans())
@settings(deadline=None)
def test_blocks_follow_on_each_other_and_are_bounded(sizes: list[int], seed: int, epoch: int, shuffle: bool) -> None:
    blocks = plan(groups_of(sizes), seed=seed, epoch=epoch, shuffle=shuffle)
    first = 0
    for block in blocks:
        assert (block.first, block.epoch) == (first, epoch)
        assert block.rows == len(block.order()) == sum(group.rows for group in block.groups)
        assert sum(group.size for group in block.groups) <= BLOCK_BYTES or len(block.groups) == 1
        first += block.rows
    assert first == sum(sizes)
    for block, following in itertools.pairwise(blocks):  # no smaller than they have to be
        assert sum(group.size for group in (*block.groups, following.groups[0])) > BLOCK_BYTES


@given(sizes, seeds, epochs)
@settings(deadline=None)
def test_without_shuffling_the_order_is_that_of_the_files(sizes: list[int], seed: int, epoch: int) -> None:
    blocks = plan(groups_of(sizes), seed=seed, epoch=epoch, shuffle=False)
    assert rows_of(blocks) == [
        (group.file, group.index, row) for group in groups_of(sizes) for row in range(group.rows)
    ]


@given(sizes, seeds, epochs)
@settings(deadline=None)
def test_the_order_is_a_function_of_seed_and_epoch(sizes: list[int], seed: int, epoch: int) -> None:
    once, again = (plan(groups_of(sizes), seed=seed, epoch=epoch, shuffle=True) for _ in range(2))
    assert once == again


def test_another_epoch_or_seed_has_another_order_and_it_is_no_rotation() -> None:
    groups = groups_of([50] * 12)
    orders = [rows_of(plan(groups, seed=seed, epoch=epoch, shuffle=True)) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            # Two random orders of 600 rows agree in one place on average.
            assert sum(one == two for one, two in zip(order, other, strict=True)) < 20
        follows = [one[:2] == two[:2] and two[2] - one[2] == 1 for one, two in itertools.pairwise(order)]
        assert sum(follows) < 20


def test_a_shuffle_mixes_rows_of_files_that_lie_far_apart() -> None:
    """Row groups of a block come from anywhere, and rows of a block are mixed: no batch is of one file alone."""
    groups = groups_of([64] * 24, rows_a_block=256)
    first_blocks = [plan(groups, seed=0, epoch=epoch, shuffle=True)[0].groups for epoch in range(20)]
    assert {group for members in first_blocks for group in members} == set(groups)
    order = rows_of(plan(groups, seed=0, epoch=0, shuffle=True))
    for start in range(0, len(order), 64):
        assert len({(file, index) for file, index, _ in order[start : start + 64]}) == 4
