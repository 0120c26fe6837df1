"""The pictures of samples: found by id in files of any length, and made small enough for a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.data.row_groups import expand
from pathor1.errors import DataError
from pathor1.samples import open_parquet

LONGEST_SIDE = 320  # pixels of a thumbnail
# A picture with shorter sides is enlarged by whole numbers until it has this many pixels, so that each stays a square.
ENLARGED_SIDE = 160
# Rows in memory at a time: what others write may have all its rows in one row group.
ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a rollout's sample adds to the ledger: the question, its options, and its pictures as they are encoded."""

    question: str
    options: tuple[str, ...]
    images: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A picture in a data URI; `width` and `height` are what it takes on the page, in pixels."""

    uri: str
    width: int
    height: int
    enlarged: bool


def find(patterns: Sequence[str], ids: Collection[str]) -> tuple[dict[str, Found], list[str]]:
    """Samples by id, from files in the forms of `data.train`, and one line about each file that cannot be read.

    Of a file the ids are read, a row group at a time, and further columns only of row groups that hold one of `ids`. No
    file is read any further once all are found.
    """
    found: dict[str, Found] = {}
    problems: list[str] = []
    for path in _paths(patterns, problems):
        try:
            _find_in(path, set(ids), found)
        except (DataError, pa.ArrowException, OSError) as error:
            line = " ".join(str(error).split())
            problems.append(line if path in line else f"{path}: {line}")
        if len(found) == len(set(ids)):
            break
    return found, problems


def _paths(patterns: Sequence[str], problems: list[str]) -> Iterator[str]:
    """The files that patterns name, and into `problems` a line about each pattern that names none."""
    for pattern in patterns:
        try:
            paths = expand([pattern])
        except DataError as error:
            problems.append(str(error))
        else:
            yield from paths


def _find_in(path: str, ids: set[str], found: dict[str, Found]) -> None:
    """Adds what a file has of `ids` to `found`, until that holds them all."""
    file = open_parquet(path)
    for index in range(file.num_row_groups):
        wanted = pa.array(sorted(ids - set(found)), file.schema_arrow.field("id").type)
        if not len(wanted):
            return
        if pc.any(pc.is_in(file.read_row_group(index, columns=["id"])["id"], value_set=wanted)).as_py():
            for row in _rows(file, index, wanted):
                found[row["id"]] = Found(
                    question=row["question"] or "",
                    options=tuple(row["options"] or ()),
                    images=tuple(image for image in row["images"] or () if image is not None),
                )


def _rows(file: Any, index: int, wanted: pa.Array) -> Iterator[dict[str, Any]]:
    """The rows of a row group whose ids are wanted; of the others no picture becomes a Python value."""
    columns = ["id", "question", "options", "images"]
    for batch in file.iter_batches(batch_size=ROWS, row_groups=[index], columns=columns):
        yield from batch.filter(pc.is_in(batch["id"], value_set=wanted)).to_pylist()


def thumbnail(data: bytes) -> Thumbnail:
    """An encoded picture as one of at most `LONGEST_SIDE` pixels: a PNG where it is enlarged, else a JPEG.

    Raises DataError for bytes that are no picture, or one too large or too thin to be one.
    """
    picture = decode(data, min_pixels=1, max_pixels=LARGEST_PIXELS)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    longest = max(picture.size)
    enlarged = longest < ENLARGED_SIDE
    factor = math.ceil(ENLARGED_SIDE / longest) if enlarged else 1
    buffer = io.BytesIO()
    if enlarged:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=85)
    kind = "png" if enlarged else "jpeg"
    return Thumbnail(
        uri=f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}",
        width=picture.width * factor,
        height=picture.height * factor,
        enlarged=enlarged,
    )
