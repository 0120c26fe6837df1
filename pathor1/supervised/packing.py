"""Which samples of a step go together: rows filled to a number of tokens, and the rows of each forward pass.

A pure function of the samples' lengths. Samples of a row do not see each other (`pathor1.supervised.batches` gives each
its own positions, by which transformers tells them apart), and the loss is a sum over tokens: how a step is packed, and
over how many workers, changes neither its loss nor its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pathor1.recipe import Model
from pathor1.training import Stage

Row = list[int]  # the numbers of its samples, by which they lie in the step

# By how much of the least that there could be, places for tokens may be more, where rows are shorter for it.
SLACK = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The shape of a forward pass: at most `places` for tokens, in rows of at most `columns` of them.

    masked: a row costs its length squared, as what is of different samples in it is only masked.
    """

    places: int
    columns: int
    masked: bool

    @classmethod
    def of(cls, model: Model, training: Stage) -> Self:
        """Flash attention takes samples one behind the other, in a single row, and its cost is that of each alone.

        SDPA masks what does not belong together, at the cost of the whole row squared: there, rows are no longer than
        the longest sample may be.
        """
        most = training.max_tokens_per_pass
        if model.attention == "flash_attention_2":
            return cls(places=most, columns=most, masked=False)
        return cls(places=most, columns=training.max_tokens, masked=True)

    def lengths_of_rows(self, longest: int) -> list[int]:
        """The lengths of rows that come into question, shortest first, for samples of which the longest is so long."""
        shorter = [longest << doubled for doubled in range(self.columns.bit_length())] if self.masked else []
        return [*(columns for columns in shorter if columns < self.columns), self.columns]


def pack(lengths: Sequence[int], layout: Layout, ranks: int) -> list[list[list[Row]]]:
    """[ranks][passes][rows] the samples of a step, by their numbers; every rank has as many passes as the others.

    lengths: in tokens, each at most `layout.columns`. Rows are filled by first fit, longest samples first; rows of
    about the same length are passed together, on all ranks at a time, so that neither padding nor waiting is long.
    Where a row costs its length squared, rows are as short as they can be without much more padding, or another pass.
    A pass without rows is one of a rank that has nothing left to do. The same lengths are packed in the same way.
    """
    tried = [
        _packed(lengths, columns, layout.places // columns, ranks)
        for columns in layout.lengths_of_rows(max(lengths, default=1))
    ]
    allowed = [packed for packed in tried if len(packed[0]) <= len(tried[-1][0])]
    sizes = [places(lengths, packed) for packed in allowed]
    return next(packed for packed, size in zip(allowed, sizes, strict=True) if size <= (1 + SLACK) * min(sizes))


def places(lengths: Sequence[int], packed: Sequence[Sequence[Sequence[Row]]]) -> int:
    """Places for tokens in all passes: every row of one is as long as its longest."""
    passes = (rows for of_rank in packed for rows in of_rank)
    return sum(len(rows) * max((_length(lengths, row) for row in rows), default=0) for rows in passes)


def _packed(lengths: Sequence[int], columns: int, rows_of_pass: int, ranks: int) -> list[list[list[Row]]]:
    rows = sorted(_fill(lengths, columns), key=lambda row: -_length(lengths, row))
    passes = -(-len(rows) // (ranks * rows_of_pass))
    each = -(-len(rows) // (ranks * passes)) if passes else 0  # rows of a pass: spread evenly, not first come
    packed: list[list[list[Row]]] = [[[] for _ in range(passes)] for _ in range(ranks)]
    for place, row in enumerate(rows):
        packed[place % ranks][place // (ranks * each)].append(row)
    return packed


def _length(lengths: Sequence[int], row: Row) -> int:
    return sum(lengths[number] for number in row)


def _fill(lengths: Sequence[int], columns: int) -> list[Row]:
    rows: list[Row] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[number]
        place = next((place for place, left in enumerate(room) if left >= length), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(columns)
        rows[place].append(number)
        room[place] -= length
    return rows
