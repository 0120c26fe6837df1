"""Deals the samples of each step to the ranks: the same samples, in the same order, however many ranks there are.

An actor of rank 0's, so that it ends with it. It reads the stream ahead by Ray Data and looks at what the blocks say of
their rows; ranks fetch the blocks themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pathor1.data.left_out import LeftOut
from pathor1.data.read_block import ReadBlock
from pathor1.data.stream import Reading, ReadRow, ReadRows, SampleStream, Source, StreamState
from pathor1.supervised.encode import EncodeRows
from pathor1.supervised.packing import Layout, pack


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRow:
    """Where an encoded sample lies: a row of a block of `encode.SCHEMA`. tokens: all; learned: those in the loss."""

    id: str
    source: str
    tokens: int
    learned: int
    block: Any  # ray.ObjectRef of a table
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a rank does in a step, and what the step is, on all ranks together.

    passes: rows of samples for each forward pass, each sample with the number of its source; sources: their names;
    tokens, learned: of all samples; places: for tokens, those of padding among them; learned_by: of each source;
    left_out: samples since the run began that could not be used; stream: the place behind the step.
    """

    passes: list[list[list[tuple[EncodedRow, int]]]]
    sources: tuple[str, ...]
    learned_by: tuple[int, ...]
    samples: int
    tokens: int
    learned: int
    places: int
    left_out: int
    left_out_share: float
    stream: StreamState


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """What a dealer deals from, and how. steps: at most so many, of batch_size samples each."""

    sources: Sequence[Source]
    reading: Reading
    read: ReadRows[EncodedRow]
    layout: Layout
    seed: int
    batch_size: int
    steps: int
    left_out: Path  # one JSON object for each sample that cannot be used
    max_bad_fraction: float


class Dealer:
    """Hands every rank its share of each step; a step is dealt when the first rank asks for it.

    Raises what the stream raises, to every rank: DataError where too many samples cannot be used.
    """

    def __init__(self, deal: Deal, *, ranks: int, start: StreamState | None, done: int = 0) -> None:
        self.deal = deal
        self.ranks = ranks
        self.stream = SampleStream(deal.sources, seed=deal.seed, reading=deal.reading, start=start, read=deal.read)
        self.left_out = LeftOut(deal.left_out, start=self.stream.state(), max_fraction=deal.max_bad_fraction)
        self.step = done
        self.dealt: dict[int, list[Share]] = {}
        self.asked: Counter[int] = Counter()

    def share(self, step: int, rank: int) -> Share:
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

    def _deal(self) -> list[Share]:
        usable, unusable = self.stream.take(self.deal.batch_size)
        for row in unusable:
            self.left_out.add(row, row.problem or "")
        samples = [row.sample for row in usable]
        names = sorted({sample.source for sample in samples})
        packed = pack([sample.tokens for sample in samples], self.deal.layout, self.ranks)
        learned = Counter[str]()
        for sample in samples:
            learned[sample.source] += sample.learned
        passes = [
            [[[(samples[n], names.index(samples[n].source)) for n in row] for row in rows] for rows in of_rank]
            for of_rank in packed
        ]
        whole: dict[str, Any] = {
            "sources": tuple(names),
            "learned_by": tuple(learned[name] for name in names),
            "samples": len(samples),
            "tokens": sum(sample.tokens for sample in samples),
            "learned": sum(sample.learned for sample in samples),
            "places": sum(_places(rows) for of_rank in passes for rows in of_rank),
            "left_out": self.left_out.count,
            "left_out_share": self.left_out.share,
            "stream": self.stream.state(),
        }
        return [Share(passes=of_rank, **whole) for of_rank in passes]


def _places(rows: list[list[tuple[EncodedRow, int]]]) -> int:
    """Places for tokens in a pass: every row is as long as the longest."""
    return len(rows) * max((sum(sample.tokens for sample, _ in row) for row in rows), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadEncoded:
    """How a stream reads blocks whose rows Ray Data's workers encode: a `ReadRows[EncodedRow]`."""

    encode: EncodeRows

    def __call__(self, reads: Sequence[ReadBlock], name: str, workers: int) -> Generator[ReadRow[EncodedRow]]:
        import ray

        from pathor1.data import block_source

        encoding = [ReadAndEncode(read=each, encode=self.encode) for each in reads]
        with closing(block_source.blocks(encoding, name=name, workers=workers)) as blocks:
            for block in blocks:
                told = ray.get(block).select(["id", "source", "epoch", "position", "problem", "tokens", "learned"])
                for index, row in enumerate(told.to_pylist()):
                    place = {key: row.pop(key) for key in ("epoch", "position", "problem")}
                    yield ReadRow(sample=EncodedRow(**row, block=block, index=index), **place)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAndEncode:
    """One block -> rows of `encode.SCHEMA`: the function that one of Ray Data's workers runs."""

    read: ReadBlock
    encode: EncodeRows

    def __call__(self) -> Generator[pa.Table]:
        for rows in self.read():
            yield self.encode(rows)
