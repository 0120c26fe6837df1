"""One block of the plan, read: what one of Ray Data's workers does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pathor1 import places
from pathor1.data.images import bitmap, decode
from pathor1.data.plan import Block
from pathor1.data.row_groups import RowGroup
from pathor1.errors import DataError
from pathor1.samples import COLUMNS, SCHEMA, from_row

# Rows and bytes that are handed on at a time: the first are there before the block is done.
ROWS_PER_TABLE = 64
BYTES_PER_TABLE = 8 << 20


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
            made = self._table(places[:ROWS_PER_TABLE], order, texts, images)
            yield made
            places = places[made.num_rows :]

    def _table(
        self, places: npt.NDArray[np.int64], order: npt.NDArray[np.int64], texts: pa.Table, images: pa.ChunkedArray
    ) -> pa.Table:
        """The rows at these places of the block, or the first of them, as many as make `BYTES_PER_TABLE`.

        Texts are taken for all at once, which costs less than row by row; pictures one at a time: taking copies.
        """
        rows: list[dict[str, Any]] = []
        pictures = PictureColumn()
        indices = order[places]
        taken = texts.take(pa.array(indices)).to_pylist()
        for place, index, row in zip(places.tolist(), indices.tolist(), taken, strict=True):
            checked = self._checked({**row, "images": images[index].as_py()}, pictures)
            rows.append({**checked, "epoch": self.block.epoch, "position": self.block.first + place})
            if pictures.size >= BYTES_PER_TABLE:
                break
        made = pa.Table.from_pylist(rows, schema=STREAM_SCHEMA.remove(_IMAGES))
        return made.add_column(_IMAGES, STREAM_SCHEMA.field(_IMAGES), pictures.array())

    def _checked(self, row: dict[str, Any], pictures: PictureColumn) -> dict[str, Any]:
        """The row with its `problem`; its pictures, if it can be used, become the column's next entry."""
        try:
            sample = from_row(row)
            if problem := sample.problem():
                raise DataError(problem)
            pictures.append(map(self._picture, sample.images))
        except DataError as error:
            pictures.append(())
            return {**row, **_without_content(row), "problem": str(error)}
        return {**row, "problem": None}

    def _picture(self, image: bytes) -> tuple[bytes, ...]:
        """One within the pixel budget, or as it is, in parts. Raises DataError where it cannot be decoded."""
        if self.encoded:
            return (image,)
        return bitmap(decode(image, min_pixels=self.min_pixels, max_pixels=self.max_pixels))


class PictureColumn:
    """The column `images`, written a row at a time into the memory that is handed on.

    As `bytes` of each row, and then a column of them, pictures would be written twice more, each time into memory that
    is new to the process, which costs ten times what the copying does.
    """

    def __init__(self) -> None:
        # Of more than 4 MB, numpy asks for large pages.
        self._memory = np.empty(BYTES_PER_TABLE + BYTES_PER_TABLE // 4, np.uint8)
        self._ends = [0]  # of each picture, in bytes
        self._rows = [0]  # pictures before each row

    @property
    def size(self) -> int:
        """Bytes of all pictures."""
        return self._ends[-1]

    def append(self, pictures: Iterable[Sequence[bytes]]) -> None:
        """A row's pictures, each in parts. Where getting one raises, the row is not appended."""
        ends, size = [], self.size
        for parts in pictures:
            for part in parts:
                size = self._write(size, part)
            ends.append(size)
        self._ends += ends
        self._rows.append(len(self._ends) - 1)

    def _write(self, begin: int, part: bytes) -> int:
        end = begin + len(part)
        if end > len(self._memory):
            larger = np.empty(end + BYTES_PER_TABLE, np.uint8)
            larger[:begin] = self._memory[:begin]
            self._memory = larger
        self._memory[begin:end] = np.frombuffer(part, np.uint8)
        return end

    def array(self) -> pa.ListArray:
        """[rows] lists of pictures. Nothing may be appended from here on."""
        # What is handed on is held by whoever takes it: small pictures must not hold on to much that is empty.
        memory = self._memory[: self.size]
        if self.size < len(self._memory) // 2:
            memory = memory.copy()
        ends = pa.py_buffer(np.array(self._ends, np.int32))
        pictures = pa.Array.from_buffers(pa.binary(), len(self._ends) - 1, [None, ends, pa.py_buffer(memory)])
        return pa.ListArray.from_arrays(pa.array(self._rows, pa.int32()), pictures)


def _without_content(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row that cannot be used is handed on with: its names, and nothing that could be wrong."""
    texts = {name: row[name] or "" for name in ("id", "source", "task", "question", "answer", "split")}
    return {**texts, "options": None, "turns": None, "meta": None}


STREAM_SCHEMA = pa.schema(
    [*SCHEMA, pa.field("epoch", pa.int64()), pa.field("position", pa.int64()), pa.field("problem", pa.string())]
)
_IMAGES = STREAM_SCHEMA.get_field_index("images")


def _read(group: RowGroup) -> pa.Table:
    # Types as ours; nulls where none may be are found row by row.
    nullable = pa.schema([column.with_nullable(True) for column in SCHEMA])
    with places.told(group.file):
        return places.parquet(group.file).read_row_group(group.index, columns=list(COLUMNS)).cast(nullable)
