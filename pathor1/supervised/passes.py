"""A step's samples as the forward passes of each rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pathor1.data.dealer import EncodedRow
from pathor1.supervised.packing import Layout, pack, places


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow(EncodedRow):
    """A row of a block of `encode.SCHEMA`. tokens: all; learned: those in the loss."""

    tokens: int
    learned: int


Rows = list[list[tuple[SampleRow, int]]]  # the samples of each row, every one with the number of its source


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """What a rank does in a step, and what the step is, on all ranks together.

    passes: the rows of each forward pass; sources: their names; tokens, learned: of all samples; places: for tokens,
    those of padding among them; learned_by: of each source.
    """

    passes: list[Rows]
    sources: tuple[str, ...]
    learned_by: tuple[int, ...]
    samples: int
    tokens: int
    learned: int
    places: int

    def rows(self) -> Iterator[SampleRow]:
        """The rank's samples."""
        return (sample for rows in self.passes for row in rows for sample, _ in row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Packs the samples of a step for every rank, each as many passes as the others."""

    layout: Layout

    def __call__(self, samples: Sequence[SampleRow], ranks: int) -> list[Passes]:
        names = sorted({sample.source for sample in samples})
        lengths = [sample.tokens for sample in samples]
        packed = pack(lengths, self.layout, ranks)
        learned = Counter[str]()
        for sample in samples:
            learned[sample.source] += sample.learned
        passes = [
            [[[(samples[n], names.index(samples[n].source)) for n in row] for row in rows] for rows in of_rank]
            for of_rank in packed
        ]
        return [
            Passes(
                passes=of_rank,
                sources=tuple(names),
                learned_by=tuple(learned[name] for name in names),
                samples=len(samples),
                tokens=sum(lengths),
                learned=sum(sample.learned for sample in samples),
                places=places(lengths, packed),
            )
            for of_rank in passes
        ]
