"""Features of files of samples: each picture is encoded once for a model, whatever is measured with it.

They are kept under what they hang on: the model's configuration and weights, and the data's fingerprint. One model
works in this process; several, and any on a cluster that is joined, are actors of Ray Data, one a GPU.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pathor1 import files, places
from pathor1.clip import models
from pathor1.clip.models import Encoder, Found
from pathor1.contrastive import ANY_SIZE
from pathor1.data.images import decode
from pathor1.data.row_groups import RowGroup, expand, fingerprint, row_groups
from pathor1.errors import DataError, Fault
from pathor1.ray_cluster import check_resources, joins_a_cluster, ray_cluster
from pathor1.samples import COLUMNS, Sample, from_row

Floats = npt.NDArray[np.float32]
# Of the layout below, and of how pictures are made ready: another number, and nothing that is kept counts any more.
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A picture that has features. picture: SHA-256 of its bytes. caption: None for other tasks than `caption`."""

    id: str
    file: str
    caption: str | None
    picture: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """images: [n, d], not of length 1, one for each of `rows`. left_out: id -> why a sample has none."""

    images: Floats
    rows: tuple[Row, ...]
    left_out: dict[str, str]


# values: float32 features, null where the picture cannot be used, and `problem` says why.
EMBEDDED = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("file", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("picture", pa.string()),
        pa.field("meta", pa.string()),
        pa.field("values", pa.binary()),
        pa.field("problem", pa.string()),
    ]
)


def features(
    encoder: Encoder,
    patterns: Sequence[str],
    cache: Path,
    *,
    batch_size: int = 64,
    threads: int = 4,
    encoders: int | None = 1,
) -> Features:
    """The features of all pictures of these files, from `cache` where they were made before.

    threads: that decode for each model; encoders: models side by side, None = as many as there are GPUs, and on CPUs
    one. A picture that cannot be read is left out, and `left_out` says why. Raises DataError where none can be read,
    and for files that are no samples, RunError for more models than the cluster has room for.
    """
    paths = expand(patterns)
    groups = row_groups(paths)
    key = {"version": VERSION, "model": encoder.digest, "data": asdict(fingerprint(groups))}
    kept = cache / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.npz"
    if kept.is_file():
        return _load(kept)
    reads = [ReadPictures(group=group, size=batch_size) for group in groups]
    if not joins_a_cluster() and (encoders or models.devices()) == 1:
        made = _in_this_process(encoder, reads, threads)
    else:
        made = _on_ray(encoder.found, reads, batch_size, threads, encoders)
    with closing(made):
        found = _gathered(made, paths)
    _save(found, kept)
    return found


def _gathered(tables: Iterator[pa.Table], paths: Sequence[str]) -> Features:
    rows: list[Row] = []
    values: list[Floats] = []
    left_out: dict[str, str] = {}
    for row in (row for table in tables for row in table.to_pylist()):
        problem, meta, of_row = row.pop("problem"), json.loads(row.pop("meta")), row.pop("values")
        if problem is not None:
            left_out[row["id"]] = problem
            continue
        rows.append(Row(**row, meta=meta))
        values.append(np.frombuffer(of_row, dtype=np.float32))
    if not rows:
        told = next(iter(left_out.values()), "there are no samples")
        raise DataError(f"{', '.join(map(str, paths))}: no picture can be used; the first: {told}")
    return Features(images=np.stack(values), rows=tuple(rows), left_out=left_out)


def _in_this_process(encoder: Encoder, reads: Sequence[ReadPictures], threads: int) -> Generator[pa.Table]:
    embed = Embed(encoder, threads)
    for read in reads:
        for table in read():
            yield embed(table)


def _on_ray(
    found: Found, reads: Sequence[ReadPictures], batch_size: int, threads: int, encoders: int | None
) -> Generator[pa.Table]:
    import ray
    import ray.data

    from pathor1.data.block_source import dataset, handed_out

    with ray_cluster({}, log_to_driver=False):
        gpu = models.device() == "cuda" or bool(ray.cluster_resources().get("GPU"))
        kind = "GPU" if gpu else "CPU"
        count = encoders or (max(1, int(ray.cluster_resources().get("GPU", 0))) if gpu else 1)
        check_resources(kind, count, f"{count} models (encoders)")
        pictures = dataset(reads, name="pictures", workers=max(2, count))
        with warnings.catch_warnings():
            # Ray 2.64 will have another way to say max_restarts.
            warnings.simplefilter("ignore", DeprecationWarning)
            made = pictures.map_batches(
                Embed,
                fn_constructor_kwargs={"model": found, "threads": threads},
                batch_size=batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=count),
                num_cpus=1,
                num_gpus=1 if gpu else None,
                max_restarts=0,  # a model that dies would die again, without end
            )
        try:
            yield from handed_out(made)
        except ray.exceptions.RayActorError as error:
            raise Fault("a model has died, as a rule for want of memory; take a smaller batch_size") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPictures:
    """A row group -> tables of at most so many samples, with their `file`: what a worker of Ray Data's runs."""

    group: RowGroup
    size: int

    def __call__(self) -> Iterator[pa.Table]:
        for batch in places.batches(self.group.file, group=self.group.index, size=self.size, columns=COLUMNS):
            table = pa.Table.from_batches([batch])
            yield table.append_column("file", pa.array([self.group.file] * len(table), pa.string()))


class Embed:
    """Tables of samples -> tables of `EMBEDDED`, a row for each, by a model that is made where this is."""

    def __init__(self, model: Encoder | Found, threads: int) -> None:
        self.encoder = model if isinstance(model, Encoder) else Encoder(model, device=models.device())
        self.threads = ThreadPoolExecutor(threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        ready = list(self.threads.map(self._prepared, table.to_pylist()))
        pictures = [picture for _, picture in ready if picture is not None]
        values = iter(self.encoder.images(pictures) if pictures else ())
        rows = [row if picture is None else row | {"values": next(values).tobytes()} for row, picture in ready]
        return pa.Table.from_pylist(rows, schema=EMBEDDED)

    def _prepared(self, row: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """A row of `EMBEDDED` without features, and the picture as the model takes it, None = it cannot be used."""
        told = {"id": row["id"], "file": row.pop("file"), "meta": "{}"}
        try:
            sample = from_row(row)
            data = one_picture(sample)
            picture = self.encoder.preprocess(decode(data, min_pixels=1, max_pixels=ANY_SIZE))
        except DataError as error:
            return told | {"problem": str(error)}, None
        caption = sample.answer if sample.task == "caption" else None
        digest = hashlib.sha256(data).hexdigest()
        return told | {"caption": caption, "picture": digest, "meta": json.dumps(sample.meta or {})}, picture


def one_picture(sample: Sample) -> bytes:
    """The picture of a sample. Raises DataError where it has none, or several: which one the text means is not said."""
    if len(sample.images) != 1:
        raise DataError(f"{len(sample.images)} pictures, where one is needed")
    return sample.images[0]


def _save(made: Features, path: Path) -> None:
    told = {"rows": [asdict(row) for row in made.rows], "left_out": made.left_out}
    text = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, images=made.images, told=text)
    files.write(path, buffer.getvalue())


def _load(path: Path) -> Features:
    with np.load(path, allow_pickle=False) as found:
        told = json.loads(found["told"].tobytes())
        images: Floats = found["images"]
    return Features(images=images, rows=tuple(Row(**row) for row in told["rows"]), left_out=told["left_out"])
