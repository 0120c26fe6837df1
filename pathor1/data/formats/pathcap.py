"""PathCap (jamessyx/PathCap): data.json and images/, captions of figures from PubMed Central and books.

[{caption, pmc_id, figure_fn}], 223,169. Which field names the picture is not documented: `PICTURE` has those that are
taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pathor1.data.formats.record import Built, Format, Record, entries, file_in, json_items, need_file, record, text
from pathor1.errors import DataError
from pathor1.samples import Sample

LICENSE = "CC-BY-NC-2.0"
PICTURE = ("figure_fn", "image", "img", "image_name", "file_name")


def records(source: Path) -> Iterator[Record]:
    """The items in the order of the file. Raises DataError where there is no such file, or no list in it."""
    path = need_file(source / "data.json", "give the folder that holds PathCap's data.json and images/")
    place = -1
    for place, item in enumerate(json_items(path)):
        yield record(f"{path.name}, {place}", partial(_build, item, place, source))
    if place < 0:
        raise DataError(f"{path}: holds no list of items; give PathCap's own file")


def _build(item: Any, place: int, source: Path) -> Built:
    row = entries(item)
    name = text(row, *PICTURE)
    sample = Sample(
        id=f"pathcap/train/{place}",
        source="PathCap",
        task="caption",
        question="",
        answer=text(row, "caption"),
        meta={"picture": name, "pmc_id": row.get("pmc_id")},
        license=LICENSE,
    )
    return sample, (file_in(source, f"images/{name}"),)


FORMAT = Format(source="the folder of data.json and images/", records=records)
