"""Quilt-1M: quilt_1M_lookup.csv and images/ (in some copies quilt_1m/), a million captions of pictures.

An unnamed index, caption, image_path, subset, split (train, val), pathology, roi_text, noisy_text, corrected_text,
med_umls_ids, magnification (0, 1, 2), height, width; in some releases also single_wsi and not_histology. Captions have
several lines, and many rows have the same picture: an item is a row. Rows that are marked as no histology are left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pathor1.data.formats.record import Built, Format, Record, need_file, record, table_rows, text
from pathor1.data.formats.values import first_picture
from pathor1.errors import DataError
from pathor1.samples import Sample

TABLES = ("quilt_1M_lookup.csv", "quilt_1m_lookup.csv")
NEEDED = ("caption", "image_path", "split")
SPLITS = ("train", "val", "test")


def records(source: Path) -> Iterator[Record]:
    """The rows in the order of the table. Raises DataError where there is none, or it lacks a column."""
    there = [source / name for name in TABLES if (source / name).is_file()]
    path = there[0] if there else need_file(source / TABLES[0], "give the folder that holds it and images/")
    with path.open(encoding="utf-8-sig", newline="") as file:
        columns = next(csv.reader(file), [])
    if missing := [name for name in NEEDED if name not in columns]:
        raise DataError(f"{path}: no column {', '.join(missing)}; give Quilt-1M's own table")
    for place, row in enumerate(table_rows(path)):
        yield record(f"{path.name}, row {place}", partial(_build, row, place, source))


def _build(row: Mapping[str, str], place: int, source: Path) -> Built:
    if row.get("not_histology", "").strip().casefold() in ("1", "1.0", "true"):
        raise DataError("not histology")
    split, name = text(row, "split"), text(row, "image_path")
    if split not in SPLITS:
        raise DataError(f"split {split!r} is none of {', '.join(SPLITS)}")
    sample = Sample(
        id=f"quilt-1m/{split}/{place}",
        source="Quilt-1M",
        task="caption",
        question="",
        answer=text(row, "caption"),
        subfield="histopathology",
        split=split,
        # The unnamed column is the index; cells without a value say nothing.
        meta={key or "index": value for key, value in row.items() if key not in ("caption", "split") and value},
    )
    return sample, (first_picture([source], [f"images/{name}", f"quilt_1m/{name}"]),)


FORMAT = Format(source="the folder of quilt_1M_lookup.csv and images/", records=records)
