"""The files of samples that a recipe names, and their row groups, from footers alone: no row is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow.parquet as pq

from pathor1 import places
from pathor1.errors import DataError
from pathor1.samples import open_parquet

# An object store answers each request after some hundredths of a second, and many at a time.
FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """One row group of one file. Example: RowGroup(file="train.parquet", index=3, rows=256, size=25_000_000)."""

    file: str  # a local path or a URI
    index: int
    rows: int
    size: int  # bytes in memory, as the file's footer says
    ids: str = ""  # the smallest and the largest id, as the footer says


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a set of files is, from their footers alone. digest: of each row group's rows, bytes, and range of ids."""

    files: int
    rows: int
    digest: str


def expand(patterns: Sequence[str]) -> list[str]:
    """Files, folders of *.parquet, and globs, local or of object stores -> each one's sorted files, distinct.

    Raises DataError where one names nothing, or its store cannot be read.
    """
    distinct: dict[str, None] = {}
    for pattern in patterns:
        files = places.listed(pattern) if places.is_remote(pattern) else [str(path) for path in _local(pattern)]
        if not files:
            raise DataError(f"{pattern}: no Parquet file there")
        distinct.update(dict.fromkeys(files))
    return list(distinct)


def _local(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        found = path.glob("*.parquet")
    elif not path.is_file() and any(mark in pattern for mark in places.MARKS):
        found = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)) if path.anchor else pattern)
    else:
        return [path]
    return sorted(each for each in found if each.is_file())


def row_groups(files: Sequence[str | Path]) -> list[RowGroup]:
    """The row groups of all files, from their footers alone. Raises DataError on a file that is no sample file."""
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        groups = [group for of_file in pool.map(_row_groups_of, files) for group in of_file]
    if not sum(group.rows for group in groups):
        raise DataError(f"{', '.join(map(str, files))}: no samples there")
    return groups


def _row_groups_of(file: str | Path) -> list[RowGroup]:
    metadata = open_parquet(file).metadata
    return [
        RowGroup(file=str(file), index=i, rows=group.num_rows, size=group.total_byte_size, ids=_ids(group))
        for i, group in enumerate(map(metadata.row_group, range(metadata.num_row_groups)))
    ]


def _ids(group: pq.RowGroupMetaData) -> str:
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == "id" and column.statistics is not None and column.statistics.has_min_max:
            return f"{column.statistics.min} {column.statistics.max}"
    return ""


def fingerprint(groups: Sequence[RowGroup]) -> Fingerprint:
    """What the files are, wherever they lie: folders may be renamed, files and their rows may not change."""
    told = [(PurePosixPath(group.file).name, group.index, group.rows, group.size, group.ids) for group in groups]
    return Fingerprint(
        files=len({group.file for group in groups}),
        rows=sum(group.rows for group in groups),
        digest=hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16],
    )


def refuse_changed(found: Fingerprint, expected: Fingerprint) -> None:
    """Raises DataError where the files are not those that a place of a checkpoint is in, with what has changed."""
    if found == expected:
        return
    if (found.files, found.rows) == (expected.files, expected.rows):
        what = f"its {expected.files} files have as many rows as before, and other ones"
    else:
        what = f"{expected.files} files of {expected.rows} rows have become {found.files} of {found.rows}"
    raise DataError(
        f"the training data has changed since the checkpoint: {what}; the place in it means nothing any more: restore "
        "the files, or start a new run with the checkpoint's huggingface folder as model.path"
    )
