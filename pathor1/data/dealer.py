"""Deals the rows of each step to the ranks: the same rows, in the same order, however many ranks there are.

An actor of rank 0's, so that it ends with it. It reads the stream ahead by Ray Data, whose workers encode the rows, and
looks at what the blocks say of them; ranks fetch the blocks themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa

from pathor1.data.left_out import LeftOut
from pathor1.data.read_block import ReadBlock
from pathor1.data.stream import Reading, ReadRow, ReadRows, SampleStream, Source, StreamState


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRow:
    """Where an encoded sample lies."""

    id: str
    source: str
    block: Any  # ray.ObjectRef of a table
    index: int


Row = TypeVar("Row", bound=EncodedRow)
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share(Generic[Part]):
    """What a rank does in a step: its part.

    left_out: samples since the run, or its stage, began that could not be used; stream: the place behind the step.
    """

    part: Part
    left_out: int
    left_out_share: float
    stream: StreamState


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal(Generic[Row, Part]):
    """What a dealer deals from, and how.

    steps: at most so many, of batch_size rows each; split: a step's rows, and how many ranks there are -> the part of
    each rank.
    """

    sources: Sequence[Source]
    reading: Reading
    read: ReadRows[Row]
    split: Callable[[Sequence[Row], int], Sequence[Part]]
    seed: int
    batch_size: int
    steps: int
    left_out: Path  # one JSON object for each sample that cannot be used
    max_bad_fraction: float


class Dealer(Generic[Row, Part]):
    """Hands every rank its share of each step; a step is dealt when the first rank asks for it.

    Raises what the stream raises, to every rank: DataError where too many samples cannot be used.
    """

    def __init__(self, deal: Deal[Row, Part], *, ranks: int, start: StreamState | None, done: int = 0) -> None:
        self.deal = deal
        self.ranks = ranks
        self.stream = SampleStream(deal.sources, seed=deal.seed, reading=deal.reading, start=start, read=deal.read)
        self.left_out = LeftOut(deal.left_out, start=self.stream.state(), max_fraction=deal.max_bad_fraction)
        self.step = done
        self.dealt: dict[int, list[Share[Part]]] = {}
        self.asked: Counter[int] = Counter()

    def share(self, step: int, rank: int) -> Share[Part]:
        """A rank's share of a step. Every rank asks once for each step, in order."""
        while self.step < step:
            self.dealt[self.step + 1] = self._deal()
            self.step += 1
        found = self.dealt[step][rank]
        self.asked[step] += 1
        if self.asked[step] == self.ranks:
            del self.dealt[step], self.asked[step]
        if self.step == self.deal.steps:
            self.stream.close()  # nobody asks for more
        return found

    def _deal(self) -> list[Share[Part]]:
        usable, unusable = self.stream.take(self.deal.batch_size)
        for row in unusable:
            self.left_out.add(row, row.problem or "")
        left_out, state = self.left_out, self.stream.state()
        return [
            Share(part=part, left_out=left_out.count, left_out_share=left_out.share, stream=state)
            for part in self.deal.split([row.sample for row in usable], self.ranks)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadEncoded(Generic[Row]):
    """How a stream reads blocks whose rows Ray Data's workers encode: a `ReadRows[Row]`.

    encode: a table of `STREAM_SCHEMA` -> one with a row for each, with id, source, epoch, position, problem, and what a
    model takes; told: its columns that `row` has beside those of `EncodedRow`; rows_ahead: about how many rows lie
    ready at most, None = as many as the stream's bytes allow.
    """

    encode: Callable[[pa.Table], pa.Table]
    row: type[Row]
    told: tuple[str, ...]
    rows_ahead: int | None = None

    def __call__(self, reads: Sequence[ReadBlock], name: str, workers: int) -> Generator[ReadRow[Row]]:
        import ray

        from pathor1.data import block_source

        columns = ["id", "source", "epoch", "position", "problem", *self.told]
        # Of a block on another node only these columns come here: the pictures go to the ranks alone.
        select = ray.remote(num_cpus=0)(_select)
        one_node = len(ray.nodes()) == 1
        encode = ray.put(self.encode)  # once for all tasks: it may hold many ids
        encoding = [ReadAndEncode(read=each, encode=encode) for each in reads]
        found = block_source.blocks(encoding, name=name, workers=workers, rows_ahead=self.rows_ahead)
        with closing(found) as blocks:
            for block in blocks:
                table = _select(ray.get(block), columns) if one_node else ray.get(select.remote(block, columns))
                for index, row in enumerate(table.to_pylist()):
                    place = {key: row.pop(key) for key in ("epoch", "position", "problem")}
                    yield ReadRow(sample=self.row(**row, block=block, index=index), **place)


def _select(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    return table.select(columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAndEncode:
    """One block -> tables of encoded rows: the function that one of Ray Data's workers runs.

    encode: a reference (ray.ObjectRef) of what encodes.
    """

    read: ReadBlock
    encode: Any

    def __call__(self) -> Iterator[pa.Table]:
        encode = _here(self.encode)
        for rows in self.read():
            yield encode(rows)


@lru_cache(maxsize=4)
def _here(reference: Any) -> Any:
    """What lies at a reference, fetched once a process."""
    import ray

    return ray.get(reference)


def fetched(rows: Iterable[EncodedRow]) -> dict[Any, pa.Table]:
    """The blocks that these rows lie in, with their tables."""
    import ray

    blocks = list({row.block: None for row in rows})
    return dict(zip(blocks, ray.get(blocks), strict=True))
