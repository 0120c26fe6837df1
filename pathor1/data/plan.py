"""The order of an epoch: a pure function of (row groups, seed, epoch), known before any row is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathor1.data.row_groups import RowGroup

# Rows are shuffled within a block, and the row groups of a block come from anywhere in the files: a shuffle that never
# reads a row group twice in an epoch. A block is as many row groups as hold this many bytes, which is what a worker
# has in memory: thousands of small pictures, or a few hundred large ones.
BLOCK_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one Ray Data task reads: row groups, and the order in which their rows come out."""

    epoch: int
    first: int  # the place of the block's first row in the epoch
    groups: tuple[RowGroup, ...]
    seed: tuple[int, int, int] | None  # of the order: the run's, the epoch, the block's place; None = as they stand

    @property
    def rows(self) -> int:
        """How many rows its row groups have."""
        return sum(group.rows for group in self.groups)

    def order(self) -> npt.NDArray[np.int64]:
        """[rows] a permutation: which row of the row groups, one behind the other, comes at each place.

        Made where it is needed: for millions of rows, the orders of all blocks would fill the driver's memory.
        """
        return np.arange(self.rows) if self.seed is None else np.random.default_rng(self.seed).permutation(self.rows)


def plan(groups: Sequence[RowGroup], *, seed: int, epoch: int, shuffle: bool) -> list[Block]:
    """The blocks of one epoch in order."""
    ordered = list(groups)
    if shuffle:
        ordered = [groups[index] for index in np.random.default_rng((seed, epoch)).permutation(len(groups))]
    blocks: list[Block] = []
    first = 0
    for place, members in enumerate(_blocks(ordered)):
        block = Block(epoch=epoch, first=first, groups=members, seed=(seed, epoch, place) if shuffle else None)
        blocks.append(block)
        first += block.rows
    return blocks


def _blocks(groups: Sequence[RowGroup]) -> Iterator[tuple[RowGroup, ...]]:
    """Consecutive row groups of at most `BLOCK_BYTES` together; a larger one is alone."""
    members: list[RowGroup] = []
    size = 0
    for group in groups:
        if members and size + group.size > BLOCK_BYTES:
            yield tuple(members)
            members, size = [], 0
        members.append(group)
        size += group.size
    if members:
        yield tuple(members)
