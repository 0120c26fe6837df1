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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The shape of a forward pass: at most `rows` rows of at most `columns` tokens."""

    rows: int
    columns: int

    @classmethod
    def of(cls, model: Model, training: Stage) -> Self:
        """Flash attention takes samples one behind the other, in a single row, and its cost is that of each alone.

        SDPA masks what does not belong together, at the cost of the whole row squared: there, rows are as short as the
        longest sample may be.
        """
        if model.attention == "flash_attention_2":
            return cls(rows=1, columns=training.max_tokens_per_pass)
        return cls(rows=training.max_tokens_per_pass // training.max_tokens, columns=training.max_tokens)


def pack(lengths: Sequence[int], layout: Layout, ranks: int) -> list[list[list[Row]]]:
    """[ranks][passes][rows] the samples of a step, by their numbers; every rank has as many passes as the others.

    lengths: in tokens, each at most `layout.columns`. Rows are filled by first fit, longest samples first; rows of
    about the same length are passed together, on all ranks at a time, so that neither padding nor waiting is long. A
    pass without rows is one of a rank that has nothing left to do. The same lengths are packed in the same way.
    """
    rows = sorted(_fill(lengths, layout.columns), key=lambda row: -sum(lengths[number] for number in row))
    passes = -(-len(rows) // (ranks * layout.rows))
    each = -(-len(rows) // (ranks * passes)) if passes else 0  # rows of a pass: spread evenly, not first come
    packed: list[list[list[Row]]] = [[[] for _ in range(passes)] for _ in range(ranks)]
    for place, row in enumerate(rows):
        packed[place % ranks][place // (ranks * each)].append(row)
    return packed


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
