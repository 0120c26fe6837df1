"""A table of captions: *.csv with the columns image_path and caption, and the pictures beside it.

The form in which the authors of Patho-R1 hand their own captions to the converter that they have published. A caption
may have many lines; what else a row has is kept as meta. image_path starts from the table's folder, or from images/ in
it. A folder may have several tables. Pictures of any format that is read: TIFF, BMP and others too.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pathor1.data.formats.record import Built, Format, Record, record, table_rows, text
from pathor1.data.formats.values import first_picture
from pathor1.errors import DataError
from pathor1.samples import Sample

NEEDED = ("image_path", "caption")


def records(source: Path) -> Iterator[Record]:
    """The rows of all tables, by name. Raises DataError where there is none, or one lacks a column."""
    tables = [source] if source.is_file() else sorted(source.glob("*.csv"))
    if not tables:
        raise DataError(f"{source}: holds no *.csv; give the table, or its folder")
    for path in tables:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = next(csv.reader(file), [])
        if missing := [name for name in NEEDED if name not in columns]:
            raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
        for place, row in enumerate(table_rows(path)):
            yield record(f"{path.name}, row {place}", partial(_build, row, place, path))


def _build(row: Mapping[str, str], place: int, path: Path) -> Built:
    name = text(row, "image_path")
    sample = Sample(
        id=f"{path.stem}/{place}",
        source=path.stem,
        task="caption",
        question="",
        answer=text(row, "caption"),
        meta={key: value for key, value in row.items() if key and key != "caption" and value},
    )
    return sample, (first_picture([path.parent], [name, f"images/{name}"]),)


FORMAT = Format(source="a table, or the folder of one or more", records=records)
