"""The questions of an evaluation: listed without their pictures, read a unit at a time, asked in several ways."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa

from pathor1 import places
from pathor1.errors import DataError
from pathor1.samples import COLUMNS, LETTERS, Sample, from_row, open_parquet

# Questions that are read at a time, and among which pictures are exchanged.
WINDOW = 256

# How a question is asked: as it is, greedily and sampled, and for each of the recipe's `evaluation.checks`.
KINDS = ("greedy", "sampled", "removed_pictures", "shuffled_pictures", "shuffled_options")
_TEXTS = [name for name in COLUMNS if name != "images"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is read in one go: the questions of whole row groups of one file, in order. rows: (row group, its rows)."""

    file: str
    rows: tuple[tuple[int, tuple[int, ...]], ...]
    questions: tuple[Sample, ...]  # without their pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All questions in order, without their pictures, in the units in which they are read."""

    units: tuple[Unit, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Of all units."""
        return tuple(sample for unit in self.units for sample in unit.questions)

    @property
    def digest(self) -> str:
        """Of which questions these are, in which order: what an exchange of pictures hangs on."""
        return hashlib.sha256(json.dumps([sample.id for sample in self.samples]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question as it is asked: `sample` may have other pictures, or other places of its options."""

    kind: str
    sample: Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The questions of a unit in one way, without those that are answered already."""

    kind: str
    unit: Unit
    tasks: tuple[str, ...]
    answered: frozenset[str]
    seed: int

    def read(self) -> Iterator[list[Asked]]:
        """As they are asked, a window at a time. Reads pictures: what one of Ray Data's workers does."""
        for window in read_unit(self.unit):
            yield [
                Asked(kind=self.kind, sample=sample)
                for sample in ask(self.kind, window, seed=self.seed)
                if sample.task in self.tasks and sample.id not in self.answered
            ]


def value(sample: Sample, column: str) -> str:
    """What a question has in a column, such as "subfield" or "meta.subset"; "-" = nothing."""
    if column.startswith("meta."):
        found = (sample.meta or {}).get(column.removeprefix("meta."))
    else:
        found = getattr(sample, column)
    return "-" if found is None else str(found)


def listing(
    files: Sequence[str],
    *,
    tasks: Sequence[str],
    where: Mapping[str, Sequence[str]] | None = None,
    first: int | None = None,
) -> Listing:
    """The questions of all files in order; of each file the `first`, or all.

    Samples of other tasks, or with other values than `where` names, are passed over. Raises DataError for a sample that
    cannot be used (an evaluation on some of the questions could not be compared with another), for an id that comes
    twice, and where no sample is left.
    """
    units: list[Unit] = []
    for file in files:
        left = first
        rows: list[tuple[int, tuple[int, ...]]] = []
        waiting: list[Sample] = []
        for group in range(open_parquet(file).metadata.num_row_groups):
            wanted = list(islice(_wanted(file, group, tasks, where or {}), left))
            left = None if left is None else left - len(wanted)
            if wanted:
                rows.append((group, tuple(row for row, _ in wanted)))
                waiting += [sample for _, sample in wanted]
            if len(waiting) >= WINDOW:
                units.append(Unit(file=str(file), rows=tuple(rows), questions=tuple(waiting)))
                rows, waiting = [], []
        if waiting:
            units.append(Unit(file=str(file), rows=tuple(rows), questions=tuple(waiting)))
    found = Listing(units=tuple(units))
    _refuse(found.samples, files, tasks, where)
    return found


def sampled(found: Listing, count: int, *, seed: int) -> Listing:
    """At most `count` of the questions, in their order: the same ones for the same questions and seed."""
    total = len(found.samples)
    if total <= count:
        return found
    chosen = set(np.random.default_rng(seed).choice(total, count, replace=False).tolist())
    units: list[Unit] = []
    place = 0
    for unit in found.units:
        rows: list[tuple[int, tuple[int, ...]]] = []
        for group, of_group in unit.rows:
            taken = [row for offset, row in enumerate(of_group, start=place) if offset in chosen]
            place += len(of_group)
            if taken:
                rows.append((group, tuple(taken)))
        first = place - len(unit.questions)
        questions = [one for offset, one in enumerate(unit.questions, start=first) if offset in chosen]
        if questions:
            units.append(Unit(file=unit.file, rows=tuple(rows), questions=tuple(questions)))
    return Listing(units=tuple(units))


def _refuse(
    found: Sequence[Sample], files: Sequence[str], tasks: Sequence[str], where: Mapping[str, Sequence[str]] | None
) -> None:
    if not found:
        among = f"no sample has a task among data.tasks ({', '.join(tasks)})"
        raise DataError(f"{', '.join(map(str, files))}: {among}{' and is as benchmark.where says' if where else ''}")
    seen: set[str] = set()
    for sample in found:
        if sample.id in seen:
            raise DataError(f"sample id {sample.id!r} comes twice in {', '.join(map(str, files))}; ids must be unique")
        seen.add(sample.id)


def _wanted(
    file: str, group: int, tasks: Sequence[str], where: Mapping[str, Sequence[str]]
) -> Iterator[tuple[int, Sample]]:
    row = -1
    for batch in places.batches(str(file), group=group, size=4096, columns=_TEXTS):
        for texts in batch.to_pylist():
            row += 1
            if texts["task"] not in tasks:
                continue
            sample = from_row({**texts, "images": []})
            if not all(value(sample, column) in values for column, values in where.items()):
                continue
            if problem := sample.problem():
                raise DataError(f"{file}: sample {sample.id!r}: {problem}")
            yield row, sample


def read_unit(unit: Unit) -> Iterator[list[Sample]]:
    """The questions of a unit in order, with their pictures, `WINDOW` at a time."""
    window: list[Sample] = []
    for group, rows in unit.rows:
        before = 0
        for batch in places.batches(unit.file, group=group, size=WINDOW, columns=COLUMNS):
            here = [row - before for row in rows if before <= row < before + batch.num_rows]
            before += batch.num_rows
            # Of the others the pictures are not even made Python's.
            window += [from_row(row) for row in batch.take(pa.array(here, pa.int64())).to_pylist()]
            while len(window) >= WINDOW:
                yield window[:WINDOW]
                window = window[WINDOW:]
    if window:
        yield window


def ask(kind: str, window: Sequence[Sample], *, seed: int) -> list[Sample]:
    """The questions of a window as they are asked in one of `KINDS`: the same ones for the same window and seed.

    Questions that cannot be asked so are left out: without pictures, or with one option order alone.
    """
    if kind == "removed_pictures":
        return [replace(sample, images=()) for sample in window if sample.images]
    if kind == "shuffled_pictures":
        return shuffled_pictures(window, _rng(seed, kind, window[0].id))
    if kind == "shuffled_options":
        return [shuffled_options(sample, _rng(seed, kind, sample.id)) for sample in window if sample.options]
    return list(window)


def _rng(seed: int, *what: str) -> np.random.Generator:
    """A generator of its own for each question: which of them are asked, and where, changes nothing."""
    digest = hashlib.sha256("\0".join(what).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def shuffled_pictures(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The same questions, each with the pictures of another one that has as many.

    No question keeps its own. One whose number of pictures no other has is left out, and so is one that would be given
    the same: several questions may be about one picture.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        alike[len(sample.images)].append(place)
    giver: dict[int, int] = {}
    for count, places_ in alike.items():
        if count == 0 or len(places_) < 2:
            continue
        # Everyone in a circle gives to the next: nobody to himself.
        circle = rng.permutation(places_).tolist()
        giver.update(zip(circle, [*circle[1:], circle[0]], strict=True))
    given = [replace(samples[place], images=samples[giver[place]].images) for place in sorted(giver)]
    return [one for one, place in zip(given, sorted(giver), strict=True) if one.images != samples[place].images]


def shuffled_options(sample: Sample, rng: np.random.Generator) -> Sample:
    """The same question with its options in another order, the right one under another letter."""
    options = sample.options or ()
    right = LETTERS.index(sample.answer)
    order = list(range(len(options)))
    while order[right] == right:
        order = rng.permutation(len(options)).tolist()
    return replace(sample, options=tuple(options[place] for place in order), answer=LETTERS[order.index(right)])


def chance(sample: Sample) -> float:
    """How often guessing is right: one in as many as there are options, or one in two."""
    return 1 / len(sample.options) if sample.options else 0.5
