"""Features of files of samples: each picture is encoded once for a model, whatever is measured with it.

They are kept under what they hang on: the model's configuration and weights, and the data's fingerprint.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pathor1 import files
from pathor1.clip.models import Encoder
from pathor1.contrastive import ANY_SIZE
from pathor1.data.images import decode
from pathor1.data.row_groups import expand, fingerprint, row_groups
from pathor1.errors import DataError
from pathor1.samples import Sample, read

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


def features(
    encoder: Encoder, patterns: Sequence[str], cache: Path, *, batch_size: int = 64, threads: int = 4
) -> Features:
    """The features of all pictures of these files, from `cache` where they were made before.

    A picture that cannot be read is left out, and `left_out` says why. Raises DataError where none can be read, and for
    files that are no samples.
    """
    paths = expand(patterns)
    key = {"version": VERSION, "model": encoder.digest, "data": asdict(fingerprint(row_groups(paths)))}
    kept = cache / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.npz"
    if kept.is_file():
        return _load(kept)
    made = _make(encoder, paths, batch_size, threads)
    _save(made, kept)
    return made


def _make(encoder: Encoder, paths: Sequence[str], batch_size: int, threads: int) -> Features:
    rows: list[Row] = []
    parts: list[Floats] = []
    left_out: dict[str, str] = {}

    def prepared(sample: Sample) -> Any:
        try:
            return encoder.preprocess(decode(one_picture(sample), min_pixels=1, max_pixels=ANY_SIZE))
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(_samples(paths), batch_size):
            ready = list(pool.map(prepared, (sample for _, sample in batch)))
            good = [number for number, one in enumerate(ready) if not isinstance(one, str)]
            left_out |= {batch[number][1].id: one for number, one in enumerate(ready) if isinstance(one, str)}
            if good:
                parts.append(encoder.images([ready[number] for number in good]))
                rows += [_row(*batch[number]) for number in good]
    if not rows:
        told = next(iter(left_out.values()), "there are no samples")
        raise DataError(f"{', '.join(map(str, paths))}: no picture can be used; the first: {told}")
    return Features(images=np.concatenate(parts), rows=tuple(rows), left_out=left_out)


def _samples(paths: Sequence[str]) -> Iterator[tuple[str, Sample]]:
    for path in paths:
        for sample in read(path):
            yield path, sample


def _batches(items: Iterator[tuple[str, Sample]], size: int) -> Iterator[list[tuple[str, Sample]]]:
    while batch := list(islice(items, size)):
        yield batch


def one_picture(sample: Sample) -> bytes:
    """The picture of a sample. Raises DataError where it has none, or several: which one the text means is not said."""
    if len(sample.images) != 1:
        raise DataError(f"{len(sample.images)} pictures, where one is needed")
    return sample.images[0]


def _row(path: str, sample: Sample) -> Row:
    return Row(
        id=sample.id,
        file=path,
        caption=sample.answer if sample.task == "caption" else None,
        picture=hashlib.sha256(sample.images[0]).hexdigest(),
        meta=dict(sample.meta or {}),
    )


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
