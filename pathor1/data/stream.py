"""The stream of samples into training: Parquet -> Ray Data (check, decode, resize) -> rows in a fixed order.

The order is a pure function of (files, seed, epoch), see `plan`; the place in it is a `Cursor`, so a run that is
resumed goes on with the row that comes next. Rows are read and resized by Ray Data's workers, a block at a
time; what is in memory is a few blocks, however long the files are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathor1.data.images import fit
from pathor1.errors import DataError
from pathor1.samples import COLUMNS, SCHEMA, Sample, from_row, open_parquet

# Rows are shuffled within a block, and the row groups of a block come from anywhere in the files: a shuffle that never
# reads a row group twice in an epoch. A block is as many row groups as hold this many bytes, which is what a worker
# has in memory: thousands of small pictures, or a few hundred large ones.
BLOCK_BYTES = 128 << 20
# Decoded and resized at a time, and handed on: the first rows are there before the block is done.
ROWS_PER_TABLE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """One row group of one file. Example: RowGroup(file="train.parquet", index=3, rows=256, size=25_000_000)."""

    file: str
    index: int
    rows: int
    size: int  # bytes in memory, as the file's footer says
    ids: str = ""  # the smallest and the largest id, as the footer says


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one Ray Data task reads: row groups, and the order in which their rows come out."""

    epoch: int
    first: int  # the place of the block's first row in the epoch
    groups: tuple[RowGroup, ...]
    order: tuple[int, ...]  # a permutation of range(sum of rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The place of the next row: epochs finished, and rows of the current epoch already passed."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a set of files is, from their footers alone. digest: of each row group's rows, bytes, and range of ids."""

    files: int
    rows: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """All that a stream needs to go on: the same rows come next, with any number of workers."""

    cursor: Cursor
    seed: int
    data: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRow:
    """A sample and its place. `problem` says why it cannot be used, None = usable."""

    epoch: int
    position: int
    sample: Sample
    problem: str | None


def expand(patterns: Sequence[str]) -> list[Path]:
    """Files, folders of *.parquet, and globs -> sorted, distinct files. Raises DataError where one names nothing."""
    distinct: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(path.glob("*.parquet"))
        elif not path.is_file() and any(mark in pattern for mark in "*?["):
            beyond = str(path.relative_to(path.anchor)) if path.anchor else pattern
            files = sorted(found for found in Path(path.anchor or ".").glob(beyond) if found.is_file())
        else:
            files = [path]
        if not files:
            raise DataError(f"{pattern}: no Parquet file there")
        distinct.update(dict.fromkeys(files))
    return list(distinct)


def row_groups(files: Sequence[Path]) -> list[RowGroup]:
    """The row groups of all files, from their footers alone. Raises DataError on a file that is no sample file."""
    groups: list[RowGroup] = []
    for path in files:
        metadata = open_parquet(path).metadata
        groups.extend(
            RowGroup(file=str(path), index=i, rows=group.num_rows, size=group.total_byte_size, ids=_ids(group))
            for i, group in enumerate(map(metadata.row_group, range(metadata.num_row_groups)))
        )
    if not sum(group.rows for group in groups):
        raise DataError(f"{', '.join(map(str, files))}: no samples in the training data")
    return groups


def _ids(group: pq.RowGroupMetaData) -> str:
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == "id" and column.statistics is not None and column.statistics.has_min_max:
            return f"{column.statistics.min} {column.statistics.max}"
    return ""


def fingerprint(groups: Sequence[RowGroup]) -> Fingerprint:
    """What the files are, wherever they lie: folders may be renamed, files and their rows may not change."""
    told = [(Path(group.file).name, group.index, group.rows, group.size, group.ids) for group in groups]
    return Fingerprint(
        files=len({group.file for group in groups}),
        rows=sum(group.rows for group in groups),
        digest=hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16],
    )


def refuse_changed(groups: Sequence[RowGroup], state: StreamState) -> None:
    """Raises DataError where the files are not those that `state` is a place in, with what has changed."""
    found, expected = fingerprint(groups), state.data
    if found == expected:
        return
    if (found.files, found.rows) == (expected.files, expected.rows):
        what = f"its {expected.files} files have as many rows as before, and other ones"
    else:
        what = f"{expected.files} files of {expected.rows} rows have become {found.files} of {found.rows}"
    raise DataError(
        f"the training data has changed since the checkpoint: {what}; the place in it means nothing any more: restore "
        "the files, or start a new run with the checkpoint's huggingface folder as model.path"
    )


def plan(groups: Sequence[RowGroup], *, seed: int, epoch: int, shuffle: bool) -> list[Block]:
    """The blocks of one epoch in order: a pure function of its arguments."""
    rng = np.random.default_rng((seed, epoch))
    ordered = [groups[i] for i in rng.permutation(len(groups))] if shuffle else list(groups)
    blocks: list[Block] = []
    first = 0
    for members in _blocks(ordered):
        rows = sum(group.rows for group in members)
        order = rng.permutation(rows) if shuffle else np.arange(rows)
        blocks.append(Block(epoch=epoch, first=first, groups=members, order=tuple(order.tolist())))
        first += rows
    return blocks


def _blocks(groups: Sequence[RowGroup]) -> Iterator[tuple[RowGroup, ...]]:
    """Consecutive row groups of at most `BLOCK_BYTES` together; a larger one is alone."""
    members: list[RowGroup] = []
    for group in groups:
        if members and sum(member.size for member in members) + group.size > BLOCK_BYTES:
            yield tuple(members)
            members = []
        members.append(group)
    if members:
        yield tuple(members)


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
        for start in range(self.skip, len(block.order), ROWS_PER_TABLE):
            order = block.order[start : start + ROWS_PER_TABLE]
            rows = table.take(pa.array(order)).to_pylist()
            yield self._table(rows, block.epoch, range(block.first + start, block.first + start + len(order)))

    def _table(self, rows: list[dict[str, Any]], epoch: int, positions: range) -> pa.Table:
        out: list[dict[str, Any]] = []
        for position, row in zip(positions, rows, strict=True):
            if row["task"] not in self.tasks:
                continue
            place = {"epoch": epoch, "position": position}
            try:
                out.append({**row, **place, "images": self._images(from_row(row)), "problem": None})
            except DataError as error:
                out.append({**row, **place, **_without_content(row), "problem": str(error)})
        return pa.Table.from_pylist(out, schema=STREAM_SCHEMA)

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
    return pq.ParquetFile(group.file).read_row_group(group.index, columns=list(COLUMNS)).cast(nullable)


class SampleStream:
    """Endless rows in a fixed order, epoch after epoch, from a cursor on.

    A new stream with the same files and seed that starts from `state()` hands out the same rows. Raises DataError where
    it is given the state of other files.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        tasks: Sequence[str],
        seed: int,
        shuffle: bool,
        min_pixels: int,
        max_pixels: int,
        workers: int,
        start: StreamState | None = None,
    ) -> None:
        self.groups = row_groups(expand(files))
        if start is not None:
            refuse_changed(self.groups, start)
        self.rows = sum(group.rows for group in self.groups)
        self.tasks = tuple(tasks)
        self.seed = seed
        self.shuffle = shuffle
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.workers = workers
        self.cursor = start.cursor if start else Cursor()
        self._rows: Iterator[StreamRow] | None = None

    def state(self) -> StreamState:
        """The place of the next row, and what it is a place in."""
        return StreamState(cursor=self.cursor, seed=self.seed, data=fingerprint(self.groups))

    def take(self, count: int) -> tuple[list[StreamRow], list[StreamRow]]:
        """The next `count` usable rows, and the unusable ones that were met on the way.

        Raises DataError where a whole epoch has no usable one.
        """
        usable: list[StreamRow] = []
        dropped: list[StreamRow] = []
        barren = 0
        while len(usable) < count:
            row = self._next()
            (usable if row.problem is None else dropped).append(row)
            barren = 0 if row.problem is None else barren + 1
            if barren > self.rows:
                raise DataError(
                    f"none of the {self.rows} training samples can be used; the last, {row.sample.id!r}: {row.problem}"
                )
        return usable, dropped

    def _next(self) -> StreamRow:
        barren = 0
        while True:
            if self._rows is None:
                self._rows = self._epoch()
            row = next(self._rows, None)
            if row is not None:
                self.cursor = Cursor(epoch=row.epoch, position=row.position + 1)
                return row
            # A whole epoch from its start without a row of the wanted tasks would repeat for ever.
            barren += self.cursor.position == 0
            if barren:
                raise DataError(f"none of the {self.rows} training samples has a task among {', '.join(self.tasks)}")
            self._rows = None
            self.cursor = Cursor(epoch=self.cursor.epoch + 1)

    def _epoch(self) -> Iterator[StreamRow]:
        """The rows of the cursor's epoch that come at or after its position, through Ray Data."""
        from pathor1.data.block_source import dataset

        epoch, position = self.cursor.epoch, self.cursor.position
        blocks = plan(self.groups, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        ahead = [block for block in blocks if block.first + len(block.order) > position]
        if not ahead:
            return
        reads = [
            ReadBlock(
                block=block,
                tasks=self.tasks,
                min_pixels=self.min_pixels,
                max_pixels=self.max_pixels,
                skip=max(0, position - block.first),
            )
            for block in ahead
        ]
        for row in dataset(reads, workers=self.workers).iter_rows():
            yield StreamRow(epoch=epoch, position=int(row["position"]), sample=from_row(row), problem=row["problem"])
