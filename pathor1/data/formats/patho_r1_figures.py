"""Figures that Patho-R1's own extraction has cut out of a book: results/result.json and crops/, a folder a book.

[{bbox, caption, figure_path, inline_ref}]: a panel each, its box in pixels of the small page picture. Each becomes a
caption sample, named by its book's folder, as crops of two books have the same names. An inline_ref that only repeats
the caption is no reference, and is left out of the sample's meta.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pathor1.data.formats.record import Built, Format, Record, entries, record, text
from pathor1.data.formats.values import first_picture, json_list, list_of
from pathor1.errors import DataError
from pathor1.samples import Sample

# A reference that is the caption to this share has been copied from it.
COPIED = 0.9
_CROP = re.compile(r"(\d+)_fig\d+\.\w+")


def records(source: Path) -> Iterator[Record]:
    """The items of each book, in the order of the folders. Raises DataError where there is no result.json."""
    found = sorted(source.glob("results/result.json")) or sorted(source.glob("*/results/result.json"))
    if not found:
        raise DataError(f"{source}: holds no results/result.json; give a book's output folder, or one of several")
    for path in found:
        folder = path.parents[1]
        for place, item in enumerate(json_list(path, "give what step 5 of the extraction writes")):
            where = f"{folder.name}/results/result.json, {place}"
            yield record(where, partial(_build, item, place, folder))


def _build(item: Any, place: int, folder: Path) -> Built:
    row = entries(item)
    # Written on the machine of the extraction, which may have been one of Windows.
    written = text(row, "figure_path")
    name = PureWindowsPath(written).name if "\\" in written else PurePosixPath(written).name
    caption = text(row, "caption")
    crop = _CROP.fullmatch(name)
    meta: dict[str, Any] = {
        "book": folder.name,
        "page": int(crop[1]) if crop else None,
        "box": _box(row),
        "references": _references(row, caption),
    }
    sample = Sample(
        id=f"{folder.name}/{place}", source=folder.name, task="caption", question="", answer=caption, meta=meta
    )
    return sample, (first_picture([folder / "crops"], [name]),)


def _box(row: Mapping[str, Any]) -> list[float]:
    """Left, top, right, bottom. Raises DataError for what is no box."""
    box = list_of(row, "bbox")
    numbers = [float(value) for value in box if isinstance(value, int | float) and math.isfinite(value)]
    if len(box) != 4 or len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise DataError(f"bbox is {str(box)[:80]}, where left, top, right, bottom are needed")
    return numbers


def _references(row: Mapping[str, Any], caption: str) -> list[str]:
    found = row.get("inline_ref") or []
    texts = [each.strip() for each in ([found] if isinstance(found, str) else found) if isinstance(each, str)]
    return [each for each in texts if each and difflib.SequenceMatcher(None, each, caption).ratio() < COPIED]


FORMAT = Format(source="a book's output folder (results/, crops/), or a folder of such folders", records=records)
