"""Public sets -> files of samples, on Ray Data: chunk by chunk, so that an interrupted import goes on where it was.

One task reads the source's items, as text and as names of pictures; others, side by side, read the pictures of a chunk
of items, check them and write the chunk's samples. A chunk is done when its row in the state folder is: a second start
passes over chunks that are done and are still made of the same items.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pathor1 import files
from pathor1.data import formats
from pathor1.data.formats.record import Picture, Record, Region
from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.errors import DataError, RunError
from pathor1.ray_cluster import ray_cluster
from pathor1.samples import Sample, to_row, write

# Items in a chunk: what is done again after an interrupt, and the samples in a file.
CHUNK = 1024
# Holds a row for each chunk that is done, until the import is.
STATE = ".import"
REPORT = "import.json"
LEFT_OUT = "left_out.jsonl"
# A progress line at most this often, in seconds.
EVERY = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a source's items."""

    items: int
    written: dict[str, int]  # by split
    left_out: int
    first_left_out: str | None


def run(name: str, source: Path, out: Path, *, workers: int, chunk: int = CHUNK) -> Outcome:
    """Imports the source, laid out as the format `name`, into `out`/SPLIT/*.parquet.

    `out`/left_out.jsonl says which items were left out and why, `out`/import.json, written last, how many of each.
    Raises DataError where the source is not of this layout or none of its items can be used, RunError where `out`
    holds something else.
    """
    import ray.data

    from pathor1.data.block_source import dataset, handed_out

    source, out = source.absolute(), out.absolute()
    if next(formats.load(name).records(source), None) is None:
        raise DataError(f"{source}: holds no items")
    state = _open_state({"format": name, "source": str(source), "chunk": chunk}, out)
    last, items, written, shown = -1, 0, 0, time.monotonic()
    with ray_cluster({}, log_to_driver=False):
        reads = [ReadChunks(format=name, source=source, size=chunk)]
        chunks = dataset(reads, name=f"import_{name}", workers=1, joined=False)
        done = chunks.map_batches(
            WriteChunk(out=out),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(workers),
            num_cpus=0.5,
        )
        with closing(handed_out(done)) as tables:
            for row in (row for table in tables for row in table.to_pylist()):
                last, items, written = row["chunk"], items + row["items"], written + row["written"]
                if time.monotonic() - shown > EVERY:
                    shown = time.monotonic()
                    print(f"{name}: {items:,} items, {written:,} samples, {items - written:,} left out", flush=True)
    for path in sorted(state.glob("[0-9]*.json")):
        if int(path.stem) > last:  # of an earlier start, when the source had more items
            _remove(out, int(path.stem))
    return _finish(name, source, out, state)


def _open_state(plan: dict[str, Any], out: Path) -> Path:
    """The state folder of this import, new or interrupted. Raises RunError where `out` is something else's."""
    state = out / STATE
    if (out / REPORT).exists():
        raise RunError(f"{out}: holds a finished import; give another folder by --out, or remove this one")
    if (state / "plan.json").exists():
        found = json.loads((state / "plan.json").read_text(encoding="utf-8"))
        if found != plan:
            raise RunError(f"{out}: holds an unfinished import of {found['source']}; give another folder by --out")
        return state
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: is not empty, and holds no unfinished import; give another folder by --out")
    files.write(state / "plan.json", json.dumps(plan) + "\n")
    return state


CHUNK_SCHEMA = pa.schema([("chunk", pa.int64()), ("records", pa.binary())])


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadChunks:
    """The source's items, a chunk a row of `CHUNK_SCHEMA`: one of Ray Data's tasks."""

    format: str
    source: Path
    size: int  # items in a chunk

    def __call__(self) -> Iterator[pa.Table]:
        records = formats.load(self.format).records(self.source)
        for index in count():
            chunk = tuple(islice(records, self.size))
            if not chunk:
                return
            row = {"chunk": [index], "records": [pickle.dumps(chunk)]}
            yield pa.Table.from_pydict(row, schema=CHUNK_SCHEMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteChunk:
    """Rows of `CHUNK_SCHEMA` -> how many items and samples: the chunk's files are written, unless they are already."""

    out: Path

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [self._chunk(row["chunk"], row["records"]) for row in table.to_pylist()]
        return pa.Table.from_pylist(rows)

    def _chunk(self, index: int, pickled: bytes) -> dict[str, int]:
        path, digest = self.out / STATE / f"{index:06d}.json", hashlib.sha256(pickled).hexdigest()
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if found["digest"] == digest:
                return {"chunk": index, "items": found["items"], "written": sum(found["written"].values())}
        _remove(self.out, index)
        records: Sequence[Record] = pickle.loads(pickled)
        left_out: dict[int, str] = {}  # place in the chunk -> why
        written: dict[str, int] = {}
        for split in dict.fromkeys(map(_split, records)):
            # One by one, as they are written: the pictures of a whole chunk may not fit in memory.
            of_split = ((place, each) for place, each in enumerate(records) if _split(each) == split)
            samples = _usable(of_split, left_out)
            first = next(samples, None)
            if first is not None:
                target = self.out / first.split / f"{index:06d}.parquet"
                written[first.split] = write(chain([first], samples), target)
        done = {
            "digest": digest,
            "items": len(records),
            "written": written,
            "left_out": [{"where": records[place].where, "why": why} for place, why in sorted(left_out.items())],
        }
        files.write(path, json.dumps(done) + "\n")
        return {"chunk": index, "items": len(records), "written": sum(written.values())}


def _remove(out: Path, index: int) -> None:
    """Removes what an earlier start has written for a chunk of other items."""
    (out / STATE / f"{index:06d}.json").unlink(missing_ok=True)
    for path in out.glob(f"*/{index:06d}.parquet"):
        path.unlink()


def _split(item: Record) -> str | None:
    return item.sample.split if item.sample else None


def _usable(records: Iterable[tuple[int, Record]], left_out: dict[int, str]) -> Iterator[Sample]:
    """The complete samples; `left_out` gets place -> why of the others."""
    for place, each in records:
        try:
            yield complete(each)
        except DataError as error:
            left_out[place] = str(error)


def complete(item: Record) -> Sample:
    """The item's sample with its pictures. Raises DataError with the reason why it cannot be used."""
    if item.sample is None:
        raise DataError(item.problem or "no sample")
    if problem := item.sample.problem():
        raise DataError(problem)
    try:
        json.dumps(to_row(item.sample), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"a text holds half a character ({error.reason})") from error
    pictures = tuple(_read(picture) for picture in item.pictures)
    return replace(item.sample, images=pictures)


def _read(picture: Picture) -> bytes:
    name = "its picture" if isinstance(picture, bytes) else f"picture {picture}"
    try:
        data = picture
        if isinstance(data, Path):
            data = data.read_bytes()
        elif isinstance(data, Region):
            data = data.png()
        decode(data, min_pixels=1, max_pixels=LARGEST_PIXELS)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return data


def _finish(name: str, source: Path, out: Path, state: Path) -> Outcome:
    """Writes what was left out, and the report last of all; the state folder is not needed any more."""
    written: Counter[str] = Counter()
    items, left_out, first = 0, 0, None
    with files.replacing(out / LEFT_OUT) as part, part.open("w", encoding="utf-8") as lines:
        for path in sorted(state.glob("[0-9]*.json")):
            row = json.loads(path.read_text(encoding="utf-8"))
            items += row["items"]
            written.update(row["written"])
            for one in row["left_out"]:
                first = first or f"{one['where']}: {one['why']}"
                left_out += 1
                lines.write(json.dumps(one, ensure_ascii=False) + "\n")
    if not written:
        (out / LEFT_OUT).unlink()
        shutil.rmtree(state)
        with suppress(OSError):  # something else is in it
            out.rmdir()
        raise DataError(f"{source}: none of its {items} items can be used; the first: {first}")
    outcome = Outcome(items=items, written=dict(sorted(written.items())), left_out=left_out, first_left_out=first)
    report = {
        "format": name,
        "source": str(source),
        "items": items,
        "written": outcome.written,
        "left_out": left_out,
    }
    files.write(out / REPORT, json.dumps(report, indent=2) + "\n")
    shutil.rmtree(state)
    return outcome
