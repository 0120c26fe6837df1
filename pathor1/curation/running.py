"""Runs one stage on Ray Data: chunk by chunk, so that an interrupted one goes on where it was.

A chunk is done when its record lies beside its rows. A second start passes over chunks that are done and still made of
the same; other settings or tools are refused, as rows of both would lie side by side.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1 import files
from pathor1.alive import alone
from pathor1.curation import made, review
from pathor1.curation.made import DROPPED, PARTS, PLAN, RECORD, REVIEW, Made, finished
from pathor1.curation.recipe import CurationRecipe
from pathor1.curation.stage import Chunk, Dropped, Row, Stage, Tally, WholeStage, digest
from pathor1.curation.stages import STAGES
from pathor1.errors import DataError, RunError
from pathor1.evaluation.progress import Progress
from pathor1.ray_cluster import ray_cluster

# Rows in a row group, which are in memory at once: of rows with pictures, and of texts, of which one file may have all.
PICTURES, TEXTS = 16, 512
# A chunk is begun so many times; after that its items are looked at one by one, as a page can take down the process
# that reads it.
BEGINNINGS = 3
OWN_SHARE = 0.875
WHOLE = "all"
WORK = "work"


def load(name: str, recipe: CurationRecipe) -> Stage | WholeStage:
    """The stage of this name."""
    module, _, kind = STAGES[name][0].partition(":")
    stage: Stage | WholeStage = getattr(import_module(module), kind)(recipe)
    return stage


def run(name: str, recipe: CurationRecipe, *, redo: bool = False) -> Made:
    """Does a stage, or what is left of it, into `runs_dir`/`name`/STAGE, and writes its review page.

    redo: what is there was made with other settings or tools, and is to be made anew. Raises RunError where a stage
    that comes before is not finished, or settings or tools are others and `redo` is not given; DataError where no item
    can be used.
    """
    return run_stage(load(name, recipe), recipe, redo=redo)


def run_stage(stage: Stage | WholeStage, recipe: CurationRecipe, *, redo: bool = False) -> Made:
    """The same for a stage that is loaded; one process at a time."""
    with alone(recipe.folder / stage.name):
        return _run(stage, recipe, redo=redo)


def _run(stage: Stage | WholeStage, recipe: CurationRecipe, *, redo: bool) -> Made:
    folder = recipe.folder / stage.name
    inputs = {each: finished(recipe.folder, each) for each in stage.inputs}
    plan = _open(stage, folder, redo=redo)
    (folder / RECORD).unlink(missing_ok=True)
    for path in (*folder.glob(f"{PARTS}/*.begun"), *folder.glob(f"{PARTS}/.*.part")):  # of a start that was killed
        path.unlink()
    if isinstance(stage, WholeStage):
        records, dropped = _whole(stage, inputs, folder), list[Dropped]()
    else:
        records, dropped = _chunks(stage, inputs, folder, recipe)
    _finish(stage.name, folder, plan, inputs, records, dropped)
    found = finished(recipe.folder, stage.name)
    cards = islice(stage.cards(found, inputs), review.LOOKED_AT)
    files.write(folder / REVIEW, review.html(found, cards, show=recipe.review_items))
    return found


def _open(stage: Stage | WholeStage, folder: Path, *, redo: bool) -> dict[str, Any]:
    """The stage's plan, written; refuses a folder of another."""
    plan = {"version": stage.version, "settings": dict(stage.settings()), "tools": dict(stage.tools())}
    plan = json.loads(json.dumps(plan))  # as it will be read
    path = folder / PLAN
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before == plan:
            return plan
        if not redo:
            raise RunError(f"{folder}: was made with {_difference(before, plan)}; --redo makes the stage anew")
        shutil.rmtree(folder)
    elif folder.exists() and any(each.name != PARTS for each in folder.iterdir()):
        raise RunError(f"{folder}: is not empty, and holds no stage of curation; take another name or runs_dir")
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(plan, indent=2) + "\n")
    return plan


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing that differs: "settings dpi = 144, now 200"."""
    if before["version"] != now["version"]:
        return f"version {before['version']} of the stage, now {now['version']}"
    for table in ("settings", "tools"):
        for name in sorted({*before[table], *now[table]}):
            old, new = before[table].get(name), now[table].get(name)
            if old != new:
                return f"{name} = {json.dumps(old)}, now {json.dumps(new)}"
    return "other settings"


CHUNK_SCHEMA = pa.schema([("chunk", pa.int64())])


@dataclass(frozen=True, slots=True)
class _Hand:
    """Ray Data's source: the places of the chunks that are left, one a row."""

    count: int

    def __call__(self) -> Iterator[pa.Table]:
        for place in range(self.count):
            yield pa.Table.from_pydict({"chunk": [place]}, schema=CHUNK_SCHEMA)


class Worker:
    """In one of Ray's processes: works on chunks, and writes each with its record. Rows of `CHUNK_SCHEMA` in."""

    def __init__(self, stage: Stage, folder: Path, chunks: list[Chunk]) -> None:
        self.stage, self.folder, self.chunks = stage, folder, chunks
        self._work: Any = None

    def __call__(self, table: pa.Table) -> pa.Table:
        chunk = self.chunks[table["chunk"][0].as_py()]
        begun = self.folder / PARTS / f"{chunk.key}.begun"
        times = len(begun.read_bytes()) if begun.exists() else 0
        if times >= BEGINNINGS:
            _write(self.stage.schema, self.folder, chunk, _singly(self.stage, chunk))
        else:
            with begun.open("ab") as file:
                file.write(b".")
            if self._work is None:
                self._work = self.stage.open()
            _write(self.stage.schema, self.folder, chunk, self._work(chunk))
        begun.unlink(missing_ok=True)
        return pa.Table.from_pylist([{"items": chunk.items}])


def _singly(stage: Stage, chunk: Chunk) -> Iterator[Row | Dropped]:
    """The rows of a chunk that takes down its process, each item in a process of its own; those that do it are dropped.

    The whole chunk is one item where the stage cannot divide it.
    """
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(_alone)
    for item in stage.singly(chunk):
        try:
            yield from ray.get(task.remote(stage, item))
        except ray.exceptions.WorkerCrashedError:
            detail = f"the process that worked on it ended, {BEGINNINGS} times with others and then alone"
            yield Dropped(where=item.key, reason="crash", detail=detail)


def _alone(stage: Stage, item: Chunk) -> list[Row | Dropped]:
    return list(stage.open()(item))


def _chunks(
    stage: Stage, inputs: Mapping[str, Made], folder: Path, recipe: CurationRecipe
) -> tuple[list[dict[str, Any]], list[Dropped]]:
    """The records of all chunks, those that were done before among them, and what could not be opened."""
    with ray_cluster({}, log_to_driver=False):
        found = list(stage.chunks(inputs))
        chunks = [each for each in found if isinstance(each, Chunk)]
        left = [chunk for chunk in chunks if not _is_done(folder, chunk)]
        if left:
            _work(stage, folder, chunks, left, recipe)
    _remove_others(folder, {chunk.key for chunk in chunks})
    return [_record(folder, chunk.key) for chunk in chunks], [each for each in found if isinstance(each, Dropped)]


def _work(stage: Stage, folder: Path, chunks: list[Chunk], left: list[Chunk], recipe: CurationRecipe) -> None:
    import ray.data

    from pathor1.data.block_source import dataset, handed_out

    total = sum(chunk.items for chunk in chunks)
    done_before = total - sum(chunk.items for chunk in left)
    if done_before:
        print(f"{stage.name}: {done_before:,} of {total:,} items are done already", flush=True)
    progress = Progress(stage.name, total=total, what="items", done=done_before)
    source = dataset([_Hand(len(left))], name=f"curate_{stage.name}", workers=1, joined=False)
    # Of each worker's CPU the task that hands out the chunks has a share: on two CPUs two workers have room beside it.
    cpus = min(stage.num_cpus * OWN_SHARE, ray.cluster_resources().get("CPU", 1) / 2)
    done = source.map_batches(
        Worker,
        fn_constructor_args=(stage, folder, left),
        batch_size=1,
        batch_format="pyarrow",
        # One chunk at a time: a chunk may take minutes, and would wait in line at one worker while another has none.
        compute=ray.data.ActorPoolStrategy(
            size=_workers(stage, recipe, len(left), cpus), max_tasks_in_flight_per_actor=1
        ),
        num_cpus=cpus,
        num_gpus=stage.num_gpus,
    )
    with closing(handed_out(done)) as tables:
        for table in tables:
            progress.add(sum(table["items"].to_pylist()))


def _workers(stage: Stage, recipe: CurationRecipe, chunks: int, cpus: float) -> int:
    """As many as asked for, or as fit beside the task that hands out the chunks: Ray would wait without end for more.

    cpus: of each worker.
    """
    import ray

    from pathor1.data.block_source import CPUS_PER_WORKER

    cluster = ray.cluster_resources()
    fit = int((cluster.get("CPU", 1) - CPUS_PER_WORKER) / max(cpus, 0.1))
    if stage.num_gpus:
        fit = min(fit, int(cluster.get("GPU", 0) / stage.num_gpus))
        if not fit:
            raise RunError(f"the stage {stage.name} asks for a GPU, and the Ray cluster has none")
    return max(1, min(recipe.workers or os.cpu_count() or 1, fit, chunks))


def _whole(stage: WholeStage, inputs: Mapping[str, Made], folder: Path) -> list[dict[str, Any]]:
    """The record of the one chunk of a stage that needs all rows at once."""
    made_of = digest({name: each.digest for name, each in inputs.items()})
    items = sum(each.rows for each in inputs.values())
    chunk = Chunk(key=WHOLE, made_of=made_of, items=items, payload=None)
    if not _is_done(folder, chunk):
        work = folder / WORK
        work.mkdir(parents=True, exist_ok=True)
        _write(stage.schema, folder, chunk, stage.make(inputs, work))
    return [_record(folder, chunk.key)]


def _write(schema: pa.Schema, folder: Path, chunk: Chunk, found: Iterable[Row | Dropped]) -> None:
    """Writes a chunk's rows, and then its record."""
    path = folder / PARTS / f"{chunk.key}.parquet"
    path.with_suffix(".json").unlink(missing_ok=True)
    writing = _Writing(schema)
    with files.replacing(path) as part:
        writing.write(found, part)
        sha256 = hashlib.sha256()
        with part.open("rb") as file:
            while data := file.read(1 << 20):
                sha256.update(data)
    record = {
        "key": chunk.key,
        "made_of": chunk.made_of,
        "items": chunk.items,
        "rows": writing.rows,
        "sha256": sha256.hexdigest(),
        "dropped": [asdict(each) for each in writing.dropped],
    }
    files.write(path.with_suffix(".json"), json.dumps(record, ensure_ascii=False) + "\n")


@dataclass
class _Writing:
    """Rows into a file as they come; Dropped are kept apart."""

    schema: pa.Schema
    rows: int = 0
    dropped: list[Dropped] = field(default_factory=list[Dropped])

    def write(self, found: Iterable[Row | Dropped], path: Path) -> None:
        pictures = [each.name for each in self.schema if each.type == pa.binary()]
        packed = {each.name: "none" if each.name in pictures else "zstd" for each in self.schema}
        with pq.ParquetWriter(path, self.schema, compression=packed, use_dictionary=False) as writer:
            waiting: list[Row] = []
            for each in found:
                if isinstance(each, Dropped):
                    self.dropped.append(each)
                    continue
                waiting.append(each)
                if len(waiting) == (PICTURES if pictures else TEXTS):
                    self._group(writer, waiting)
            self._group(writer, waiting)

    def _group(self, writer: pq.ParquetWriter, waiting: list[Row]) -> None:
        if waiting:
            self.rows += len(waiting)
            writer.write_table(pa.Table.from_pylist(waiting, schema=self.schema))
            waiting.clear()


def _is_done(folder: Path, chunk: Chunk) -> bool:
    path = folder / PARTS / f"{chunk.key}.json"
    there = path.exists() and path.with_suffix(".parquet").exists()
    return there and bool(_record(folder, chunk.key)["made_of"] == chunk.made_of)


def _record(folder: Path, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / PARTS / f"{key}.json").read_text(encoding="utf-8"))
    return found


def _remove_others(folder: Path, keys: set[str]) -> None:
    """Removes what was made of what is not there any more: a book was taken out."""
    for path in folder.glob(f"{PARTS}/*"):
        if path.suffix in (".json", ".parquet") and path.stem not in keys:
            path.unlink()


def _finish(
    name: str,
    folder: Path,
    plan: Mapping[str, Any],
    inputs: Mapping[str, Made],
    records: list[dict[str, Any]],
    unopened: list[Dropped],
) -> None:
    """Writes what was dropped, and the stage's record last of all. Raises DataError where nothing is left."""
    tally = Tally(items=sum(each["items"] for each in records) + len(unopened))
    with files.replacing(folder / DROPPED) as part, part.open("w", encoding="utf-8") as lines:
        for one in [*map(asdict, unopened), *(one for record in records for one in record["dropped"])]:
            tally.drop(one["reason"])
            lines.write(json.dumps(one, ensure_ascii=False) + "\n")
    tally.rows = sum(each["rows"] for each in records)
    if not tally.rows:
        raise DataError(f"{folder}: no row is left of {tally.items} items; {folder / made.DROPPED} says why")
    parts = [{"key": each["key"], "rows": each["rows"], "sha256": each["sha256"]} for each in records]
    record = {
        "stage": name,
        "plan": plan,
        "inputs": {each: found.digest for each, found in inputs.items()},
        "items": tally.items,
        "rows": tally.rows,
        "dropped": dict(sorted(tally.dropped.items())),
        "parts": parts,
        "digest": digest(plan, parts),
    }
    files.write(folder / RECORD, json.dumps(record, indent=1) + "\n")
