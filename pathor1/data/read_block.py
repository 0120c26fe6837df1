"""One block of the plan, read: what one of Ray Data's workers does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pathor1 import places
from pathor1.data.images import fit
from pathor1.data.plan import Block
from pathor1.data.row_groups import RowGroup
from pathor1.errors import DataError
from pathor1.samples import COLUMNS, SCHEMA, Sample, from_row

# Rows and bytes that are handed on at a time: the first are there before the block is done.
ROWS_PER_TABLE = 64
BYTES_PER_TABLE = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBlock:
    """Reads one block: the function that one of Ray Data's workers runs."""

    block: Block
    tasks: tuple[str, ...]
    min_pixels: int
    max_pixels: int
    skip: int = 0  # rows of the block that are passed already

    def __call__(self) -> Iterator[pa.Table]:
        """Tables of rows with `position` and `problem`, in the epoch's order."""
        block = self.block
        table = pa.concat_tables([_read(group) for group in block.groups], promote_options="permissive")
        rows: list[dict[str, Any]] = []
        size = 0
        for place, index in enumerate(block.order().tolist()[self.skip :], start=block.first + self.skip):
            (row,) = table.slice(index, 1).to_pylist()
            if row["task"] not in self.tasks:
                continue
            rows.append({**self._checked(row), "epoch": block.epoch, "position": place})
            size += sum(map(len, rows[-1]["images"]))
            if len(rows) == ROWS_PER_TABLE or size >= BYTES_PER_TABLE:
                yield pa.Table.from_pylist(rows, schema=STREAM_SCHEMA)
                rows, size = [], 0
        yield pa.Table.from_pylist(rows, schema=STREAM_SCHEMA)

    def _checked(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**row, "images": self._images(from_row(row)), "problem": None}
        except DataError as error:
            return {**row, **_without_content(row), "problem": str(error)}

    def _images(self, sample: Sample) -> list[bytes]:
        """The pictures within the pixel budget. Raises DataError where the sample cannot be used."""
        if problem := sample.problem():
            raise DataError(problem)
        return [fit(image, min_pixels=self.min_pixels, max_pixels=self.max_pixels) for image in sample.images]


def _without_content(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row that cannot be used is handed on with: its names, and nothing that could be wrong."""
    texts = {name: row[name] or "" for name in ("id", "source", "task", "question", "answer", "split")}
    return {**texts, "images": [], "options": None, "turns": None, "meta": None}


STREAM_SCHEMA = pa.schema(
    [*SCHEMA, pa.field("epoch", pa.int64()), pa.field("position", pa.int64()), pa.field("problem", pa.string())]
)


def _read(group: RowGroup) -> pa.Table:
    # Types as ours; nulls where none may be are found row by row.
    nullable = pa.schema([column.with_nullable(True) for column in SCHEMA])
    with places.told(group.file):
        return places.parquet(group.file).read_row_group(group.index, columns=list(COLUMNS)).cast(nullable)
