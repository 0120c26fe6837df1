"""Some rollouts of a run beside their pictures: which ones, and what the page shows of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pathor1.errors import DataError, RunError
from pathor1.report.pictures import Found, Thumbnail, find, thumbnail
from pathor1.rl.ledger import SCHEMA, LedgerRow, path
from pathor1.samples import LETTERS

SHOWN = 20
EXTREMES = 5  # of the best of the run, and of the worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One of the lettered options, whether it is right, and whether the model chose it."""

    letter: str
    text: str
    right: bool
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout as the page shows it. `question` is None where its sample was not found; `missing`: what that hides.

    kinds: "example", "best", "worst", what it was taken as.
    """

    row: LedgerRow
    kinds: tuple[str, ...]
    question: str | None
    options: tuple[Option, ...]
    pictures: tuple[Thumbnail, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """The rollouts: examples, the last step's first, then the best and the worst that are not among them.

    `problems`: one line for each data file that could not be read.
    """

    shown: tuple[Rollout, ...]
    how: str
    problems: tuple[str, ...]


def collect(ledger: Path, train: Sequence[str], *, last_step: int | None) -> Rollouts | None:
    """The rollouts of the page; None where the ledger holds none.

    train: `data.train` of the recipe. last_step: the last one with metrics. Later steps in the ledger are passed over:
    they are of a run that was stopped and went on before them. Raises RunError for a ledger file that is none.
    """
    steps = _steps(ledger)
    steps = [step for step in steps if last_step is None or step <= last_step] or steps
    if not steps:
        return None
    first, last = steps[0], steps[-1]
    rows = {step: _read(path(ledger, step)) for step in (first, last)}
    of_first = 0 if first == last else min(len(rows[first]), max(SHOWN // 2, SHOWN - len(rows[last])))
    examples = choose(rows[last], SHOWN - of_first) + choose(rows[first], of_first)
    if not examples:
        return None
    taken: dict[tuple[int, str, int], tuple[LedgerRow, list[str]]] = {}
    best, worst = extremes(ledger, steps)
    for kind, found_rows in (("example", examples), ("best", best), ("worst", worst)):
        for row in found_rows:
            taken.setdefault((row.step, row.group, row.rollout), (row, []))[1].append(kind)
    found, problems = find(train, {row.id for row, _ in taken.values()})
    shown = tuple(_shown(row, tuple(kinds), found.get(row.id)) for row, kinds in taken.values())
    return Rollouts(shown=shown, how=_how(examples, first, last), problems=tuple(problems))


def extremes(ledger: Path, steps: Sequence[int], count: int = EXTREMES) -> tuple[list[LedgerRow], list[LedgerRow]]:
    """The rollouts of all steps with the highest and with the lowest reward, one a question, the newest of equals.

    Of each step only what this hangs on is read, and then those rollouts.
    """
    best: list[_Place] = []
    worst: list[_Place] = []
    for step in steps:
        table = _table(path(ledger, step), ["group", "rollout", "id", "total"])
        best = _of_questions([*best, *_first(table, step, "descending", count)], -1)[:count]
        worst = _of_questions([*worst, *_first(table, step, "ascending", count)], 1)[:count]
    rows = {(row.step, row.group, row.rollout): row for row in _rows_at(ledger, {*best, *worst})}
    found = [[rows[place.step, place.group, place.rollout] for place in places] for places in (best, worst)]
    return found[0], found[1]


def _of_questions(places: Sequence[_Place], sign: int) -> list[_Place]:
    """The first of each question, by reward (sign -1: the highest first) and then the newest first."""
    found: dict[str, _Place] = {}

    def key(place: _Place) -> tuple[float, int]:
        return sign * place.total, -place.step

    for place in sorted(places, key=key):
        found.setdefault(place.id, place)
    return list(found.values())


class _Place(NamedTuple):
    """Where a rollout is, of which question, and its reward."""

    step: int
    group: str
    rollout: int
    id: str
    total: float


def _first(table: pa.Table, step: int, order: str, count: int) -> list[_Place]:
    """Of a step the `count` rollouts with the highest ("descending") or lowest reward, one a question."""
    keys = [("total", order), ("group", "ascending"), ("rollout", "ascending")]
    found: dict[str, _Place] = {}
    for index in pc.sort_indices(table, sort_keys=keys):
        (row,) = table.slice(index.as_py(), 1).to_pylist()
        found.setdefault(row["id"], _Place(step=step, **row))
        if len(found) == count:
            break
    return list(found.values())


def _rows_at(ledger: Path, places: set[_Place]) -> Iterator[LedgerRow]:
    wanted = {(place.step, place.group, place.rollout) for place in places}
    for step in {place.step for place in places}:
        yield from (row for row in _read(path(ledger, step)) if (step, row.group, row.rollout) in wanted)


def choose(rows: Sequence[LedgerRow], count: int) -> list[LedgerRow]:
    """At most `count` of a step's rows: right and wrong ones in turn, while there are both, the right ones first.

    The next one is of the question that has been taken least often, then of the source that has been taken least often
    among the right or the wrong ones, and then the first by group and rollout: the same rows give the same choice, in
    whatever order they come.
    """
    left = sorted(rows, key=lambda row: (row.group, row.rollout))
    groups: Counter[str] = Counter()
    sources: Counter[tuple[str, bool]] = Counter()
    chosen: list[LedgerRow] = []
    while left and len(chosen) < count:
        right = len(chosen) % 2 == 0
        fitting = [row for row in left if (row.accuracy > 0.5) == right] or left
        row = min(fitting, key=lambda row: (groups[row.group], sources[row.source, right]))
        left.remove(row)
        groups[row.group] += 1
        sources[row.source, right] += 1
        chosen.append(row)
    return chosen


def _steps(ledger: Path) -> list[int]:
    """The steps that the ledger has files of, in order."""
    matches = (re.fullmatch(r"step-(\d+)\.parquet", file.name) for file in ledger.glob("step-*.parquet"))
    return sorted(int(match[1]) for match in matches if match)


def _read(file: Path) -> list[LedgerRow]:
    return _rows(_table(file))


def _rows(table: pa.Table) -> list[LedgerRow]:
    return [LedgerRow(**row) for row in table.to_pylist()]


def _table(file: Path, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
    remedy = "remove it to have a page without it"
    try:
        parquet = pq.ParquetFile(file)
        absent = [name for name in SCHEMA.names if name not in parquet.schema_arrow.names]
        table = parquet.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{file}: not a Parquet file ({str(error).splitlines()[0]}); {remedy}") from error
    if absent:
        raise RunError(f"{file}: no column {', '.join(absent)}, so it is no ledger; {remedy}")
    return table


def _shown(row: LedgerRow, kinds: tuple[str, ...], found: Found | None) -> Rollout:
    if found is None:
        unknown = "Its question and pictures are not shown: no file of data.train that can be read has its sample."
        return Rollout(row=row, kinds=kinds, question=None, options=(), pictures=(), missing=(unknown,))
    pictures: list[Thumbnail] = []
    missing: list[str] = []
    for place, image in enumerate(found.images, start=1):
        try:
            pictures.append(thumbnail(image))
        except DataError as error:
            missing.append(f"Picture {place} of {len(found.images)} is not shown: {error}.")
    options = tuple(
        Option(letter=letter, text=text, right=letter == row.answer, chosen=letter == row.parsed)
        for letter, text in zip(LETTERS, found.options, strict=False)
    )
    return Rollout(
        row=row,
        kinds=kinds,
        question=found.question,
        options=options,
        pictures=tuple(pictures),
        missing=tuple(missing),
    )


def _how(chosen: Sequence[LedgerRow], first: int, last: int) -> str:
    """The choice in words."""
    counts = Counter(row.step for row in chosen)
    of_first = f", and {counts[first]} of step {first}, the first" if first < last else ""
    return (
        f"Examples: {counts[last]} rollouts of step {last}, the last{of_first}. Of each step, right and wrong ones are "
        "taken in turn, while there are both, from as many questions and sources as possible, else in the ledger's "
        "order; what the answers say plays no part. Best and worst: those of all steps with the highest and the lowest "
        "reward, one a question, the newest of equals."
    )
