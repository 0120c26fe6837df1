"""One block of the plan, read: what one of Ray Data's workers does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pathor1 import places
from pathor1.data.images import fit
from pathor1.data.plan import Block
from pathor1.data.row_groups import RowGroup
from pathor1.errors import DataError
from pathor1.samples import COLUMNS, SCHEMA, Sample, from_row

# Rows and bytes that are handed on at a time: the first are there before the block is done.
ROWS_PER_TABLE = 64
BYTES_PER_TABLE = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBlock:
    """Reads one block: the function that one of Ray Data's workers runs. encoded: pictures are not looked at."""

    block: Block
    tasks: tuple[str, ...]
    min_pixels: int
    max_pixels: int
    encoded: bool = False
    skip: int = 0  # rows of the block that are passed already

    def __call__(self) -> Iterator[pa.Table]:
        """Tables of rows with `position` and `problem`, in the epoch's order."""
        block = self.block
        table = pa.concat_tables([_read(group) for group in block.groups], promote_options="permissive")
        texts, images = table.drop_columns("images"), table["images"]
        order = block.order()
        wanted = pc.is_in(texts["task"], value_set=pa.array(self.tasks, pa.string())).to_numpy()
        places = np.flatnonzero(wanted[order])
        places = places[np.searchsorted(places, self.skip) :]
        if not len(places):
            yield STREAM_SCHEMA.empty_table()
        while len(places):
            rows = self._rows(places[:ROWS_PER_TABLE], order, texts, images)
            yield pa.Table.from_pylist(rows, schema=STREAM_SCHEMA)
            places = places[len(rows) :]

    def _rows(
        self, places: npt.NDArray[np.int64], order: npt.NDArray[np.int64], texts: pa.Table, images: pa.ChunkedArray
    ) -> list[dict[str, Any]]:
        """The rows at these places of the block, or the first of them, as many as make `BYTES_PER_TABLE`.

        Texts are taken for all at once, which costs less than row by row; pictures one at a time: taking copies.
        """
        rows: list[dict[str, Any]] = []
        size = 0
        indices = order[places]
        taken = texts.take(pa.array(indices)).to_pylist()
        for place, index, row in zip(places.tolist(), indices.tolist(), taken, strict=True):
            checked = self._checked({**row, "images": images[index].as_py()})
            rows.append({**checked, "epoch": self.block.epoch, "position": self.block.first + place})
            size += sum(map(len, checked["images"]))
            if size >= BYTES_PER_TABLE:
                break
        return rows

    def _checked(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**row, "images": self._images(from_row(row)), "problem": None}
        except DataError as error:
            return {**row, **_without_content(row), "problem": str(error)}

    def _images(self, sample: Sample) -> list[bytes]:
        """The pictures within the pixel budget, or as they are. Raises DataError where the sample cannot be used."""
        if problem := sample.problem():
            raise DataError(problem)
        if self.encoded:
            return list(sample.images)
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
