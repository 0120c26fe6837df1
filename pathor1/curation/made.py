"""What a stage has made: its folder of Parquet parts, and the record that says it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pathor1.errors import RunError

RECORD = "stage.json"
PLAN = "plan.json"
PARTS = "parts"
DROPPED = "dropped.jsonl"
REVIEW = "review.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of rows: those of a chunk, in order. sha256: of the file."""

    key: str
    rows: int
    sha256: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A finished stage. digest: of all its parts. counts: items, rows, and dropped by reason."""

    stage: str
    folder: Path
    digest: str
    parts: tuple[Part, ...]
    items: int
    rows: int
    dropped: dict[str, int]
    plan: dict[str, Any]

    def some(self, most: int = 40) -> tuple[Part, ...]:
        """At most so many parts, evenly apart: what a review page looks at of a library."""
        if len(self.parts) <= most:
            return self.parts
        return tuple(self.parts[place * len(self.parts) // most] for place in range(most))

    def part(self, key: str) -> Part | None:
        """The part of a key."""
        return next((part for part in self.parts if part.key == key), None)

    def read(self, columns: Sequence[str] | None = None, *, parts: Sequence[Part] | None = None) -> Iterator[Any]:
        """The rows in order, as dicts; a few in memory at a time. parts: these alone."""
        for part in self.parts if parts is None else parts:
            yield from read_rows(part.path, columns)


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """The rows of a part in order, as dicts; a few in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=16, columns=None if columns is None else list(columns)):
            yield from batch.to_pylist()


def finished(runs: Path, stage: str) -> Made:
    """A stage's record. Raises RunError where it is not finished, or made of what has changed since."""
    return _finished(runs, stage, {})


def _finished(runs: Path, stage: str, seen: dict[str, Made]) -> Made:
    """The same; `seen` keeps what was read already, as stages share their inputs."""
    if stage in seen:
        return seen[stage]
    path = runs / stage / RECORD
    if not path.exists():
        raise RunError(
            f"{runs / stage}: the stage {stage} is not finished; `pathor1 curate {stage} RECIPE` comes first"
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, digest in found["inputs"].items():
        if _finished(runs, name, seen).digest != digest:
            raise RunError(
                f"{runs / stage}: was made of {name} that have been made anew since; "
                f"run `pathor1 curate {stage} RECIPE` again"
            )
    parts = tuple(
        Part(
            key=each["key"],
            rows=each["rows"],
            sha256=each["sha256"],
            path=runs / stage / PARTS / f"{each['key']}.parquet",
        )
        for each in found["parts"]
    )
    seen[stage] = Made(
        stage=stage,
        folder=runs / stage,
        digest=found["digest"],
        parts=parts,
        items=found["items"],
        rows=found["rows"],
        dropped=found["dropped"],
        plan=found["plan"],
    )
    return seen[stage]
