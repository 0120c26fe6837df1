"""Work on the pictures of a stage's rows, part by part on Ray Data, for stages that then need all results at once.

What a part gives is a file of its own: an interrupted start does again what it was at, and a part whose rows are others
is another file.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1.curation.made import Made, Part, read_rows
from pathor1.evaluation.progress import Progress
from pathor1.files import replacing

Row = dict[str, Any]
# Made once in each worker, of the arguments that are given; works on the rows of a part.
Work = Callable[[Iterator[Row]], Iterable[Row]]
_KEYS = pa.schema([("key", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class ByPart:
    """What is done: `make(*arguments)` in each worker, on rows with these columns, gives rows of `schema`.

    workers: not set = as many as the cluster has room for. gpu: each has one, where the cluster has any.
    """

    make: Callable[..., Work]
    arguments: tuple[Any, ...]
    columns: Sequence[str]
    schema: pa.Schema
    workers: int | None = None
    gpu: bool = False


def by_part(made: Made, folder: Path, todo: ByPart, *, name: str) -> list[Path]:
    """The files of all parts, in order, in `folder`: those that are missing are made, those of other parts removed.

    name: by which Ray's dashboard and progress know it. Runs within a `ray_cluster`.
    """
    files = {part.key: folder / f"{part.key}-{part.sha256[:16]}.parquet" for part in made.parts}
    wanted = set(files.values())
    for path in (*folder.glob("*.parquet"), *folder.glob(".*.part")):  # the latter of a start that was killed
        if path not in wanted:
            path.unlink()
    left = [part for part in made.parts if not files[part.key].exists()]
    if left:
        done = made.rows - sum(part.rows for part in left)
        _make(left, files, todo, Progress(name, total=made.rows, what="items", done=done))
    return [files[part.key] for part in made.parts]


def has_gpus() -> bool:
    """Whether the Ray cluster has any; the driver's own node may have none."""
    import ray

    return bool(ray.cluster_resources().get("GPU"))


def rows_with(made: Made, ids: Container[str], columns: Sequence[str]) -> Iterator[Row]:
    """The rows with these ids, in order; of the others no picture is read, but for those in the same row group."""
    for part in made.parts:
        with pq.ParquetFile(part.path) as file:
            for group in range(file.num_row_groups):
                if any(id_ in ids for id_ in file.read_row_group(group, ["id"])["id"].to_pylist()):
                    rows = file.read_row_group(group, list(columns)).to_pylist()
                    yield from (row for row in rows if row["id"] in ids)


def rows_of(paths: Sequence[Path]) -> Iterator[Row]:
    """The rows of all files in order, a few in memory at a time."""
    for path in paths:
        yield from read_rows(path)


def _make(parts: list[Part], files: Mapping[str, Path], todo: ByPart, progress: Progress) -> None:
    import ray
    import ray.data

    from pathor1.data.block_source import dataset, handed_out

    on_gpus = todo.gpu and has_gpus()
    cluster = ray.cluster_resources()
    # The task that hands the parts out needs a share of a CPU, on a cluster of one, too.
    room = max(1, int(cluster["GPU"] if on_gpus else cluster["CPU"] - 1))
    cpus = min(1.0, cluster["CPU"] / 2)
    by_key = {part.key: part for part in parts}
    source = dataset([_Keys(list(by_key))], name=progress.name, workers=1, joined=False)
    done = source.map_batches(
        Worker,
        fn_constructor_args=(todo, by_key, dict(files)),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(todo.workers or room, room, len(parts))),
        num_cpus=cpus,
        num_gpus=1 if on_gpus else None,
    )
    with closing(handed_out(done)) as tables:
        for table in tables:
            progress.add(sum(by_key[key].rows for key in table["key"].to_pylist()))


@dataclass(frozen=True, slots=True)
class _Keys:
    keys: list[str]

    def __call__(self) -> Iterator[pa.Table]:
        for key in self.keys:
            yield pa.Table.from_pydict({"key": [key]}, schema=_KEYS)


class Worker:
    """In one of Ray's processes: works on parts, each into its file."""

    def __init__(self, todo: ByPart, parts: Mapping[str, Part], files: Mapping[str, Path]) -> None:
        self.todo, self.parts, self.files = todo, parts, files
        self.work = todo.make(*todo.arguments)

    def __call__(self, table: pa.Table) -> pa.Table:
        for key in table["key"].to_pylist():
            rows = self.work(read_rows(self.parts[key].path, self.todo.columns))
            with replacing(self.files[key]) as part:
                pq.write_table(pa.Table.from_pylist(list(rows), schema=self.todo.schema), part, compression="zstd")
        return table
