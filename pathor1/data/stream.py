"""The stream of samples into training: Parquet -> Ray Data (check, decode, resize) -> rows in a fixed order.

The order is a pure function of (files, seed, epoch), see `plan`, and of the sources' weights; the place in it is a few
numbers, so a run that is resumed goes on with the row that comes next. Rows are read and resized by Ray Data's workers,
a block at a time; what is in memory is a few blocks, however long the files are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar, cast

from pathor1.data.plan import Block, plan
from pathor1.data.read_block import ReadBlock
from pathor1.data.row_groups import Fingerprint, RowGroup, fingerprint, refuse_changed
from pathor1.errors import DataError
from pathor1.recipe import Data
from pathor1.samples import Sample, from_row


class Named(Protocol):
    """What a stream hands out: a Sample, or what has been made of one."""

    @property
    def id(self) -> str:
        """The sample's."""

    @property
    def source(self) -> str:
        """The sample's."""


S = TypeVar("S", bound=Named)

# A pipeline of Ray Data takes a second to start: one that is this many blocks long, of several epochs where they are
# short, starts often enough. No block is read before its turn.
BLOCKS_AT_A_TIME = 64
# Rows that lie ready where nobody says how many are taken at a time.
ROWS_AHEAD = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files whose rows come in a common order. weight: its part of the rows that are handed out, among all sources."""

    name: str
    groups: Sequence[RowGroup]
    weight: float = 1.0

    @property
    def rows(self) -> int:
        """How many rows its files have."""
        return sum(group.rows for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The place of a source's next row: epochs finished, and rows of the current epoch already passed."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """A source's place, what it is a place in, and how many usable rows it has given."""

    name: str
    weight: float
    cursor: Cursor
    given: int
    data: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """All that a stream needs to go on: the same rows come next, with any number of workers."""

    seed: int
    sources: tuple[SourceState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRow(Generic[S]):
    """A row as it was read from a source. `problem` says why it cannot be used, None = usable."""

    epoch: int
    position: int
    sample: S
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRow(ReadRow[S]):
    """A row and its place among those of all sources.

    number: how many usable rows, of all sources, came before it.
    """

    number: int
    source: str


# Reads blocks in order: (blocks, a name for Ray's dashboard, workers) -> their rows.
ReadRows = Callable[[Sequence[ReadBlock], str, int], Generator[ReadRow[S]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How rows are read: the tasks that are wanted, the pictures' sizes, and Ray Data's workers for all sources.

    rows_ahead: how many rows of each source lie ready, about and at most.
    encoded: pictures come as the bytes that they are, for `read` to decode.
    """

    tasks: tuple[str, ...]
    min_pixels: int
    max_pixels: int
    shuffle: bool
    workers: int
    rows_ahead: int = ROWS_AHEAD
    encoded: bool = False

    @classmethod
    def of(cls, data: Data, *, rows_ahead: int = ROWS_AHEAD) -> Self:
        """As a recipe says."""
        return cls(
            rows_ahead=rows_ahead,
            tasks=tuple(data.tasks),
            min_pixels=data.min_pixels,
            max_pixels=data.max_pixels,
            shuffle=data.shuffle,
            workers=data.workers,
        )


class SampleStream(Generic[S]):
    """Endless rows in a fixed order, from several sources by their weights, each epoch after epoch.

    A new stream with the same sources and seed that starts from `state()` hands out the same rows. Close it before the
    Ray cluster is left: Ray Data would go on reading. read: what becomes of the blocks, None = samples as they are.
    Raises DataError where it is given the state of other files.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        reading: Reading,
        start: StreamState | None = None,
        read: ReadRows[S] | None = None,
    ) -> None:
        if start is not None:
            refuse_other(sources, start)
        self.seed = seed
        self.rows = sum(source.rows for source in sources)
        workers = max(1, reading.workers // len(sources))
        states = start.sources if start else [None] * len(sources)
        self._sources = [
            _SourceRows(
                source,
                seed=seed,
                reading=reading,
                workers=workers,
                start=state,
                read=read or cast("ReadRows[S]", partial(read_samples, rows_ahead=reading.rows_ahead)),
            )
            for source, state in zip(sources, states, strict=True)
        ]

    def state(self) -> StreamState:
        """The place of the next row, and what it is a place in."""
        return StreamState(seed=self.seed, sources=tuple(source.state() for source in self._sources))

    def take(self, count: int) -> tuple[list[StreamRow[S]], list[StreamRow[S]]]:
        """The next `count` usable rows, and the unusable ones that were met on the way.

        Raises DataError where a whole epoch of a source has no usable one.
        """
        usable: list[StreamRow[S]] = []
        dropped: list[StreamRow[S]] = []
        before = sum(source.given for source in self._sources)
        for number in range(before, before + count):
            # Of all sources, the one that is furthest behind its share: after any number of rows, each is within one.
            source = min(self._sources, key=lambda source: (source.given + 1) / source.weight)
            row, unusable = source.next_usable(number)
            usable.append(row)
            dropped += unusable
        return usable, dropped

    def close(self) -> None:
        """Ends Ray Data's reading ahead."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refuse_other(sources: Sequence[Source], state: StreamState) -> None:
    """Raises DataError where a state is a place in other files, or of other sources or weights."""
    shares, expected = ([(each.name, each.weight) for each in some] for some in (sources, state.sources))
    if len(shares) == len(expected) == 1:  # a name is there to tell sources apart, and one weight means nothing
        shares = expected
    if shares != expected:
        told = (", ".join(f"{name} {weight:g}" for name, weight in some) for some in (expected, shares))
        raise DataError(
            "data.train or data.weights has changed since the checkpoint: {} has become {}; set them as they were, or "
            "start a new run with the checkpoint's huggingface folder as model.path".format(*told)
        )
    for source, known in zip(sources, state.sources, strict=True):
        refuse_changed(fingerprint(source.groups), known.data)


class _SourceRows(Generic[S]):
    """One source's rows, epoch after epoch."""

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        reading: Reading,
        workers: int,
        start: SourceState | None,
        read: ReadRows[S],
    ) -> None:
        self.source = source
        self.seed = seed
        self.reading = reading
        self.workers = workers
        self.read = read
        self.data = fingerprint(source.groups)  # kept: its place is asked for at every step
        self.rows = source.rows
        self.weight = source.weight
        self.cursor = start.cursor if start else Cursor()
        self.given = start.given if start else 0
        self._ahead: Generator[ReadRow[S]] | None = None

    def state(self) -> SourceState:
        return SourceState(
            name=self.source.name, weight=self.weight, cursor=self.cursor, given=self.given, data=self.data
        )

    def next_usable(self, number: int) -> tuple[StreamRow[S], list[StreamRow[S]]]:
        """The next usable row, and the unusable ones before it."""
        unusable: list[StreamRow[S]] = []
        while True:
            row = self._next(number)
            if row.problem is None:
                self.given += 1
                return row, unusable
            unusable.append(row)
            if len(unusable) > self.rows:
                raise DataError(
                    f"none of the {self.rows} training samples can be used; the last, {row.sample.id!r}: {row.problem}"
                )

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _next(self, number: int) -> StreamRow[S]:
        while True:
            if self._ahead is None:
                self._ahead = self._read(plan_ahead(self.source.groups, self.cursor, self.seed, self.reading.shuffle))
            row = next(self._ahead, None)
            if row is not None:
                self.cursor = Cursor(epoch=row.epoch, position=row.position + 1)
                return StreamRow(
                    number=number,
                    source=self.source.name,
                    epoch=row.epoch,
                    position=row.position,
                    sample=row.sample,
                    problem=row.problem,
                )
            # A whole epoch from its start without a row of the wanted tasks would repeat for ever.
            if self.cursor.position == 0:
                wanted = ", ".join(self.reading.tasks)
                raise DataError(f"none of the {self.rows} training samples has a task among {wanted}")
            self.close()
            self.cursor = Cursor(epoch=self.cursor.epoch + 1)

    def _read(self, blocks: Sequence[Block]) -> Generator[ReadRow[S]]:
        """The rows of these blocks from the cursor on, through Ray Data."""
        reading = self.reading
        reads = [
            ReadBlock(
                block=block,
                tasks=reading.tasks,
                min_pixels=reading.min_pixels,
                max_pixels=reading.max_pixels,
                encoded=reading.encoded,
                skip=max(0, self.cursor.position - block.first) if block.epoch == self.cursor.epoch else 0,
            )
            for block in blocks
        ]
        name = f"samples_{self.source.name}_from_epoch_{self.cursor.epoch}"
        yield from self.read(reads, name, self.workers)


def read_samples(reads: Sequence[ReadBlock], name: str, workers: int, *, rows_ahead: int) -> Generator[ReadRow[Sample]]:
    """Samples as they are, through Ray Data, of which about `rows_ahead` lie ready at most."""
    from pathor1.data import block_source

    with closing(block_source.tables(reads, name=name, workers=workers, rows_ahead=rows_ahead)) as tables:
        for table in tables:
            for row in table.to_pylist():
                place: dict[str, Any] = {key: row[key] for key in ("epoch", "position", "problem")}
                yield ReadRow(sample=from_row(row), **place)


def plan_ahead(groups: Sequence[RowGroup], cursor: Cursor, seed: int, shuffle: bool) -> list[Block]:
    """The blocks that hold the rest of the cursor's epoch, and whole epochs behind it to `BLOCKS_AT_A_TIME`."""
    whole = plan(groups, seed=seed, epoch=cursor.epoch, shuffle=shuffle)
    blocks = [block for block in whole if block.first + block.rows > cursor.position]
    epoch = cursor.epoch
    while len(blocks) + len(whole) <= BLOCKS_AT_A_TIME:
        epoch += 1
        blocks += plan(groups, seed=seed, epoch=epoch, shuffle=shuffle)
    return blocks
