"""SICAPv2: images/*.jpg and partition/Test/{Train,Test}.xlsx, Gleason grades of tiles of prostate biopsies.

A row of a table is a picture: image_name, and 0 or 1 in each of NC, G3, G4, G5: exactly one of them is 1. G4C, where
it is, marks the cribriform pattern within G4, and is no class of its own.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pathor1.data.formats.classes import Classes
from pathor1.data.formats.record import Built, Format, Record, field, file_in, need_file, record, text
from pathor1.errors import DataError

CLASSES = Classes(
    source="SICAPv2",
    question="Which Gleason grade does this prostate tissue show?",
    options={"NC": "non-cancerous", "G3": "Gleason grade 3", "G4": "Gleason grade 4", "G5": "Gleason grade 5"},
    subfield="histopathology",
)
TABLES = {"train": "Train.xlsx", "test": "Test.xlsx"}


def records(source: Path) -> Iterator[Record]:
    """The rows of both tables, train first. Raises DataError where one is missing, is no table or lacks a column."""
    paths = {split: source / "partition/Test" / name for split, name in TABLES.items()}
    for path in paths.values():
        need_file(path, "give the folder that holds SICAPv2's images/ and partition/")
    for split, path in paths.items():
        for number, row in _rows(path):
            yield record(f"{path.name}, row {number}", partial(_build, row, (split, number), source))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of the first sheet, with the numbers that a spreadsheet program shows."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise DataError(f"{path}: not an Excel file: {error}") from error
    try:
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # some programs write a wrong size, which would cut rows off
        rows = enumerate(sheet.iter_rows(values_only=True), start=1)
        _, header = next(rows, (0, ()))
        if missing := [name for name in ("image_name", *CLASSES.options) if name not in header]:
            raise DataError(f"{path}: no column {', '.join(missing)}; give SICAPv2's own table")
        for number, row in rows:
            if any(value is not None for value in row):
                yield number, {name: value for name, value in zip(header, row, strict=False) if isinstance(name, str)}
    finally:
        book.close()


def _build(row: Mapping[str, Any], at: tuple[str, int], source: Path) -> Built:
    split, number = at
    name = text(row, "image_name")
    classes = [each for each in CLASSES.options if _mark(row, each)]
    if len(classes) != 1:
        raise DataError(
            f"{' and '.join(classes) or 'none'} of {', '.join(CLASSES.options)} marked, where one is needed"
        )
    meta = {"image_name": name} | ({"cribriform": _mark(row, "G4C")} if row.get("G4C") is not None else {})
    sample = CLASSES.sample(f"sicapv2/{split}/{number}", classes[0], split=split, meta=meta)
    return sample, (file_in(source, f"images/{name}"),)


def _mark(row: Mapping[str, Any], name: str) -> bool:
    value = field(row, name)
    if value not in (0, 1):
        raise DataError(f"{name} is {value!r}, where 0 or 1 is needed")
    return bool(value)


FORMAT = Format(source="the folder of images/ and partition/", records=records)
