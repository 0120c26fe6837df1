"""Would training on these files go wrong? Every row is read and every picture decoded, on Ray Data.

A row group is looked at by one task (`Look`); what has to be known of all rows together, which ids and which pictures
come twice, is a few bytes for each row (`Findings`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pathor1 import places
from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.data.row_groups import RowGroup, row_groups
from pathor1.errors import DataError, RunError
from pathor1.files import replacing
from pathor1.ray_cluster import ray_cluster
from pathor1.samples import COLUMNS, from_row

# What is trained on; a picture of another split must not be among it.
TRAINING_SPLITS = ("train", "warm_start")
# Sides of pictures are counted up to these, in pixels.
SIDES = (64, 128, 256, 512, 1024, 2048, 4096)

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be used. row: its place in the file, from 1; group: its row group, from 0."""

    file: str
    group: int
    row: int
    id: str | None  # None where it is not at hand any more
    why: str

    def __str__(self) -> str:
        named = "" if self.id is None else f", sample {self.id!r}"
        return f"{self.file}, row group {self.group}, row {self.row}{named}: {self.why}"


@dataclass(slots=True, kw_only=True)
class Findings:
    """What the rows are, and what is wrong. `counts`: column -> value -> rows."""

    rows: int = 0
    pictures: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    bad: list[BadRow] = field(default_factory=list[BadRow])
    shared: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])  # splits -> pictures in both


FOUND_SCHEMA = pa.schema([("group", pa.int64()), ("rows", pa.string()), ("ids", pa.binary()), ("hashes", pa.binary())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One row group: the function that one of Ray Data's workers runs.

    Gives one row of `FOUND_SCHEMA`: `rows` is JSON, a list with an object for each row; `ids` and `hashes` are 64-bit
    hashes of each row's id, and of the pixels of each picture in order.
    """

    place: int  # among all row groups
    group: RowGroup

    def __call__(self) -> Iterator[pa.Table]:
        found: list[dict[str, object]] = []
        ids: list[int] = []
        hashes: list[int] = []
        for batch in places.batches(self.group.file, group=self.group.index, size=32, columns=COLUMNS):
            for row in batch.to_pylist():
                names = ("id", "source", "split", "task", "answer")
                facts: dict[str, object] = {name: row[name] or "" for name in names}
                facts["options"] = len(row["options"] or ())
                ids.append(_hash(str(facts["id"]).encode()))
                try:
                    sides, pictures = _pictures(row)
                    facts["sides"] = sides
                    hashes += pictures
                except DataError as error:
                    facts["why"] = str(error)
                found.append(facts)
        row = {
            "group": [self.place],
            "rows": [json.dumps(found)],
            "ids": [np.array(ids, dtype=np.uint64).tobytes()],
            "hashes": [np.array(hashes, dtype=np.uint64).tobytes()],
        }
        yield pa.Table.from_pydict(row, schema=FOUND_SCHEMA)


def _pictures(row: dict[str, object]) -> tuple[list[int], list[int]]:
    """The longer side and the hash of each picture. Raises DataError where the row cannot be trained on."""
    sample = from_row(row)
    if problem := sample.problem():
        raise DataError(problem)
    sides: list[int] = []
    hashes: list[int] = []
    for place, data in enumerate(sample.images, start=1):
        try:
            picture = decode(data, min_pixels=1, max_pixels=LARGEST_PIXELS)
        except DataError as error:
            raise DataError(f"picture {place}: {error}") from error
        sides.append(max(picture.size))
        # Of its pixels: the same picture in another file format is the same picture.
        hashes.append(_hash(repr(picture.size).encode() + picture.tobytes()))
    return sides, hashes


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def check(files: Sequence[str], *, workers: int) -> Findings:
    """Looks at every row of the files, on the Ray cluster of `RAY_ADDRESS` or one that is started for it.

    Raises DataError where a file is no Parquet or lacks columns; whatever is wrong with a row is among the findings.
    """
    from pathor1.data.block_source import tables

    groups = row_groups(files)
    findings = Findings()
    rows = _Rows(groups)
    reads = [Look(place=place, group=group) for place, group in enumerate(groups)]
    with ray_cluster({}, log_to_driver=False), closing(tables(reads, name="check", workers=workers)) as looked:
        for found in (row for table in looked for row in table.to_pylist()):
            facts = json.loads(found["rows"])
            first = int(rows.starts[found["group"]])
            for place, row in enumerate(facts):
                _count(findings, row)
                if "why" in row:
                    findings.bad.append(rows.bad(first + place, row["id"], row["why"]))
            ids, hashes = (np.frombuffer(found[name], dtype=np.uint64) for name in ("ids", "hashes"))
            rows.add(facts, ids, hashes)
    findings.shared = rows.shared()
    findings.bad = sorted([*findings.bad, *rows.repeated(), *rows.leaked()], key=lambda bad: (bad.file, bad.row))
    return findings


class _Rows:
    """What has to be known of all rows at once, in the order of the files: some 30 bytes a row and a picture."""

    def __init__(self, groups: Sequence[RowGroup]) -> None:
        self.groups = groups
        self.starts = np.cumsum([0, *(group.rows for group in groups)])
        self._file_starts: dict[str, int] = {}
        for group, start in zip(groups, self.starts.tolist(), strict=False):
            self._file_starts.setdefault(group.file, start)
        self.splits: list[str] = []
        self._ids: list[Hashes] = []
        self._split: list[npt.NDArray[np.int32]] = []  # of each row, as its place in `splits`
        self._pictures: list[Hashes] = []
        self._owner: list[npt.NDArray[np.int64]] = []  # the row of each picture
        self._seen = 0

    def add(self, facts: Sequence[dict[str, Any]], ids: Hashes, pictures: Hashes) -> None:
        for row in facts:
            if row["split"] not in self.splits:
                self.splits.append(row["split"])
        self._ids.append(ids)
        self._split.append(np.array([self.splits.index(row["split"]) for row in facts], dtype=np.int32))
        self._pictures.append(pictures)
        counts = np.array([len(row.get("sides", ())) for row in facts], dtype=np.int64)
        self._owner.append(np.repeat(np.arange(self._seen, self._seen + len(facts)), counts))
        self._seen += len(facts)

    def bad(self, row: int, id_: str | None, why: str) -> BadRow:
        file, number = self.place(row)
        return BadRow(file=file, group=self._group(row).index, row=number, id=id_, why=why)

    def place(self, row: int) -> tuple[str, int]:
        """The file of a row, and its number there, from 1."""
        file = self._group(row).file
        return file, row - self._file_starts[file] + 1

    def _group(self, row: int) -> RowGroup:
        return self.groups[int(np.searchsorted(self.starts, row, side="right")) - 1]

    def repeated(self) -> Iterator[BadRow]:
        """The rows whose id an earlier row has."""
        _, first, inverse = np.unique(np.concatenate(self._ids), return_index=True, return_inverse=True)
        for row in np.flatnonzero(first[inverse] != np.arange(len(inverse))).tolist():
            file, number = self.place(int(first[inverse[row]]))
            yield self.bad(row, None, f"its id is that of row {number} of {file}")

    def leaked(self) -> Iterator[BadRow]:
        """The rows that would be trained on and have a picture that is held out as well."""
        pictures, owner = np.concatenate(self._pictures), np.concatenate(self._owner)
        split = np.concatenate(self._split)[owner]
        trained = np.isin(split, [self.splits.index(name) for name in TRAINING_SPLITS if name in self.splits])
        held_out, first = np.unique(pictures[~trained], return_index=True)
        leaks = np.flatnonzero(trained & np.isin(pictures, held_out))
        rows, place = np.unique(owner[leaks], return_index=True)
        where = owner[~trained][first[np.searchsorted(held_out, pictures[leaks[place]])]]
        for row, other in zip(rows.tolist(), where.tolist(), strict=True):
            file, number = self.place(other)
            yield self.bad(row, None, f"its picture is held out as well, in row {number} of {file}")

    def shared(self) -> Counter[tuple[str, str]]:
        """How many different pictures each two splits have in common."""
        pictures = np.concatenate(self._pictures)
        split = np.concatenate(self._split)[np.concatenate(self._owner)]
        of = {name: np.unique(pictures[split == index]) for index, name in enumerate(self.splits)}
        shared = {
            (one, other): len(np.intersect1d(of[one], of[other], assume_unique=True))
            for one, other in combinations(sorted(of), 2)
        }
        return Counter({splits: count for splits, count in shared.items() if count})


def _count(findings: Findings, row: dict[str, Any]) -> None:
    findings.rows += 1
    for name in ("source", "split", "task"):
        findings.counts[name][str(row[name])] += 1
    if row["task"] == "mcq":
        findings.counts["options"][str(row["options"])] += 1
    if row["task"] in ("mcq", "yes_no"):
        findings.counts["answer"][str(row["answer"])] += 1
    sides = row.get("sides")
    if sides is None:
        return
    findings.pictures += len(sides)
    findings.counts["pictures"][str(len(sides))] += 1
    for side in sides:
        limit = next((limit for limit in SIDES if side <= limit), None)
        findings.counts["longer side"][f"to {limit} px" if limit else f"over {SIDES[-1]} px"] += 1


def refuse_taken(files: Sequence[str], out: Path) -> None:
    """Raises RunError where `fix` could not write to `out`: it has files already, or two inputs have the same name."""
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: is not empty; give another folder by --fix")
    if len({PurePosixPath(file).name for file in files}) != len(files):
        raise RunError("two of the files have the same name, and would be one in the new folder; fix them one by one")


def fix(files: Sequence[str], findings: Findings, out: Path) -> list[Path]:
    """Writes each file without its bad rows to `out`, and the bad rows with their reasons beside it.

    The inputs stay as they are, and may be of an object store. A file without a good row is not written.
    """
    reasons: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for bad in findings.bad:
        reasons[bad.file].setdefault(bad.row, bad.why)
    written: list[Path] = []
    for file in files:
        written += _split(file, reasons[file], out)
    return written


def _split(name: str, reasons: dict[int, str], out: Path) -> list[Path]:
    """A file's good rows and, where there are any, its bad ones as two new files, one row group in memory at a time."""
    file, path = places.parquet(name), PurePosixPath(name)
    good, bad = out / path.name, out / f"{path.stem}.left_out.parquet"
    bad_schema = file.schema_arrow.append(pa.field("problem", pa.string()))
    written = [target for target, rows in ((good, file.metadata.num_rows - len(reasons)), (bad, len(reasons))) if rows]
    with ExitStack() as stack:
        parts = {target: stack.enter_context(replacing(target)) for target in written}
        writers = {
            target: stack.enter_context(
                pq.ParquetWriter(part, bad_schema if target == bad else file.schema_arrow, compression="zstd")
            )
            for target, part in parts.items()
        }
        first = 1
        for index in range(file.num_row_groups):
            with places.told(name):
                table = file.read_row_group(index)
            why = [reasons.get(row) for row in range(first, first + len(table))]
            first += len(table)
            keep = pa.array([reason is None for reason in why])
            if good in writers:
                writers[good].write_table(table.filter(keep))
            if bad in writers:
                out_rows = table.append_column("problem", pa.array(why, pa.string())).filter(pc.invert(keep))
                writers[bad].write_table(out_rows)
    return written
