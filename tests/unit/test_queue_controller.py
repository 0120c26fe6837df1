"""Indexes of the queue: of one call all in one storage unit, of all calls in each alike, and none given out twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathor1.rl.queue_controller import TransferQueueController, UnitIndexes


def units(indexes: list[int], count: int) -> set[int]:
    """Where the queue's clients look for them (`AsyncSimpleStorageManager._group_by_hash`)."""
    return {index % count for index in indexes}


def test_a_groups_rollouts_lie_in_one_unit_and_groups_in_turns() -> None:
    indexes = UnitIndexes(4)
    groups = [indexes.allocate_indexes("train", 16) for _ in range(8)]
    assert [units(group, 4) for group in groups] == [{0}, {1}, {2}, {3}, {0}, {1}, {2}, {3}]
    assert sorted(index for group in groups for index in group) == list(range(128)), "no gaps: tables are as long"


def test_partitions_take_turns_of_their_own() -> None:
    indexes = UnitIndexes(2)
    found = [(indexes.allocate_indexes("train", 8), indexes.allocate_indexes("pictures")) for _ in range(4)]
    assert [units(pictures, 2) for _, pictures in found] == [{0}, {1}, {0}, {1}]
    assert [units(group, 2) for group, _ in found] == [{0}, {1}, {0}, {1}]


def test_what_is_released_is_given_out_again_by_its_own_unit() -> None:
    indexes = UnitIndexes(2)
    first = [indexes.allocate_indexes("train", 3) for _ in range(2)]
    indexes.release_indexes("train", [first[1][2], first[0][0], first[1][0]])
    assert indexes.allocate_indexes("train", 2) == [first[0][0], 6]
    assert indexes.allocate_indexes("train", 3) == [first[1][2], first[1][0], 7]
    assert sorted(indexes.release_partition("train")) == list(range(8))
    assert indexes.allocated_indexes == set()
    assert sorted(indexes.allocate_indexes("train", 4)) == [0, 2, 4, 6]


@given(
    count=st.integers(1, 5),
    calls=st.lists(st.tuples(st.sampled_from(["train", "pictures"]), st.integers(1, 9), st.booleans()), max_size=40),
)
def test_none_is_held_twice(count: int, calls: list[tuple[str, int, bool]]) -> None:
    indexes = UnitIndexes(count)
    held: dict[str, list[int]] = {"train": [], "pictures": []}
    for partition, wanted, gives_back in calls:
        taken = indexes.allocate_indexes(partition, wanted)
        assert len(set(taken)) == wanted
        assert len(units(taken, count)) == 1
        assert not set(taken) & {index for all_held in held.values() for index in all_held}
        held[partition] += taken
        if gives_back:
            back, held[partition] = held[partition][::2], held[partition][1::2]
            indexes.release_indexes(partition, back)
        assert indexes.allocated_indexes == {index for all_held in held.values() for index in all_held}
        assert set(indexes.get_indexes_for_partition(partition)) == set(held[partition])


def test_what_is_refused() -> None:
    indexes = UnitIndexes(2)
    with pytest.raises(ValueError, match="count is 0"):
        indexes.allocate_indexes("train", 0)
    indexes.allocate_indexes("train", 2)
    with pytest.raises(ValueError, match="do not belong"):
        indexes.release_indexes("train", [1])


@pytest.mark.parametrize(("backend", "is_ours"), [("SimpleStorage", True), ("MooncakeStore", False)])
def test_only_the_queues_own_storage_has_units(backend: str, is_ours: bool) -> None:
    class Controller(TransferQueueController):
        def __init__(self) -> None:  # without sockets
            self.index_manager: Any = SimpleNamespace(allocated_indexes=set())

    made = Controller()
    conf = SimpleNamespace(
        backend=SimpleNamespace(storage_backend=backend, SimpleStorage=SimpleNamespace(num_data_storage_units=3))
    )
    made.store_config(conf)
    assert made.get_config() is conf
    assert isinstance(made.index_manager, UnitIndexes) is is_ours
    if is_ours:
        assert made.index_manager.units == 3
        kept = made.index_manager
        kept.allocate_indexes("train")
        made.store_config(conf)
        assert made.index_manager is kept, "again, when something lies in it"
