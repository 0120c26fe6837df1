"""Deals the pairs of each step to the ranks: the same pairs however many ranks there are, to each as many.

An actor of rank 0's, so that it ends with it. It reads the stream ahead by Ray Data and looks at what the blocks say of
their rows; ranks fetch the blocks themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathor1.clip.encode import PairRow, ReadPairs
from pathor1.data.left_out import LeftOut
from pathor1.data.stream import Reading, SampleStream, Source, StreamState


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A rank's pairs of a step, and of the whole step: full, the captions that fill the context.

    left_out: samples since the stage began that could not be used; stream: the place behind the step.
    """

    rows: list[PairRow]
    full: int
    left_out: int
    left_out_share: float
    stream: StreamState


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """What a dealer deals from, and how. steps: at most so many, of batch_size pairs each."""

    sources: Sequence[Source]
    reading: Reading
    read: ReadPairs
    seed: int
    batch_size: int
    steps: int
    left_out: Path  # one JSON object for each sample that cannot be used
    max_bad_fraction: float


class Dealer:
    """Hands every rank its share of each step of a stage; a step is dealt when the first rank asks for it.

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
        """A rank's share of a step of the stage. Every rank asks once for each step, in order."""
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
        pairs = [row.sample for row in usable]
        each = len(pairs) // self.ranks
        return [
            Share(
                rows=pairs[rank * each : (rank + 1) * each],
                full=sum(pair.full for pair in pairs),
                left_out=self.left_out.count,
                left_out_share=self.left_out.share,
                stream=self.stream.state(),
            )
            for rank in range(self.ranks)
        ]
