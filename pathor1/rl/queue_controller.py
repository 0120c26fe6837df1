"""verl's queue, with all that comes in one call in one storage unit: a group's rollouts in one, and not in each.

The queue's clients find an entry in unit `index % units`, and indexes are given out in order: of a group of 16 rollouts
each of 8 units got two, by a message of its own with an answer of its own. Here all indexes of one call belong to one
unit, and calls take the units in turns. Where an entry lies does not change, so that clients are the queue's own.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, cast

from transfer_queue import controller

# The queue's class is a Ray actor class; what can be subclassed is the class that it was made of.
_Theirs: Any = cast(Any, controller.TransferQueueController).__ray_metadata__.modified_class.__ray_actor_class__


class UnitIndexes(controller.PartitionIndexManager):
    """Gives out indexes of one storage unit in each call. units: how many there are."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units
        self._free: list[deque[int]] = [deque() for _ in range(units)]
        self._next = list(range(units))  # of each unit, the first index that has never been given out
        self._turns: Counter[str] = Counter()

    def allocate_indexes(self, partition_id: str, count: int = 1) -> list[int]:
        """So many indexes that are free, all of one unit. Raises ValueError where none is asked for."""
        if count <= 0:
            raise ValueError(f"count is {count}; at least one index is given out")
        # Of its own for each partition: a group's rollouts and its pictures, by far the larger, come in turns.
        unit = self._turns[partition_id] % self.units
        self._turns[partition_id] += 1
        free = self._free[unit]
        indexes = [free.popleft() for _ in range(min(count, len(free)))]
        while len(indexes) < count:
            indexes.append(self._next[unit])
            self._next[unit] += self.units
        self.allocated_indexes.update(indexes)
        self.partition_to_indexes[partition_id].update(indexes)
        return indexes

    def release_partition(self, partition_id: str) -> list[int]:
        """Takes back all of a partition, and returns them."""
        released = super().release_partition(partition_id)
        self._sort_in()
        return released

    def release_indexes(self, partition_id: str, indexes_to_release: list[int]) -> None:
        """Takes some of a partition back. Raises ValueError where some are not the partition's."""
        super().release_indexes(partition_id, indexes_to_release)
        self._sort_in()

    def _sort_in(self) -> None:
        for index in self.reusable_indexes:
            self._free[index % self.units].append(index)
        self.reusable_indexes.clear()


class TransferQueueController(_Theirs):
    """The queue's controller with `UnitIndexes`, where its entries lie in storage units of the queue's own."""

    index_manager: controller.PartitionIndexManager

    def store_config(self, conf: Any) -> None:
        """What the queue was started with: the queue calls it before anything is put into it."""
        if conf.backend.storage_backend == "SimpleStorage" and not self.index_manager.allocated_indexes:
            self.index_manager = UnitIndexes(conf.backend.SimpleStorage.num_data_storage_units)
        super().store_config(conf)
