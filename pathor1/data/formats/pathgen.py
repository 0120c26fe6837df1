"""PathGen-1.6M (jamessyx/PathGen): PathGen-1.6M.json, captions of squares of TCGA's slides, without the pictures.

[{wsi_id, position: ["x", "y"], caption, file_id}], 1.6 million; in places the key is WSI_id, and file_id is missing.
`position` is the upper left corner, in pixels of the largest magnification, as texts. The pictures are squares of 672
pixels: images/<wsi_id>/<x>_<y>.jpg or .png where they are cut already, else read from slides/<wsi_id>.svs, or
slides/<file_id>/*.svs as the GDC client lays files out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pathor1.data.formats.record import (
    Built,
    Format,
    Picture,
    Record,
    Region,
    entries,
    field,
    json_items,
    need_file,
    record,
    text,
)
from pathor1.data.formats.values import first_picture
from pathor1.errors import DataError
from pathor1.samples import Sample

SIDE = 672


def records(source: Path) -> Iterator[Record]:
    """The items in the order of the file. Raises DataError where there is no such file, or no list in it."""
    path = need_file(source / "PathGen-1.6M.json", "give the folder that holds it, and images/ or slides/")
    slides = _slides(source / "slides")
    place = -1
    for place, item in enumerate(json_items(path)):
        yield record(f"{path.name}, {place}", partial(_build, item, place, source, slides))
    if place < 0:
        raise DataError(f"{path}: holds no list of items; give PathGen-1.6M's own file")


def _slides(folder: Path) -> dict[str, Path]:
    """The slides by wsi_id, the name of the file, and by file_id, the name of a folder in `folder`."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*/*.svs")):
        found.setdefault(path.parent.name, path)
        found.setdefault(path.stem, path)
    return found | {path.stem: path for path in sorted(folder.glob("*.svs"))}


def _build(item: Any, place: int, source: Path, slides: Mapping[str, Path]) -> Built:
    row = entries(item)
    wsi, file_id = text(row, "wsi_id", "WSI_id"), row.get("file_id")
    x, y = _position(field(row, "position"))
    sample = Sample(
        id=f"pathgen/train/{place}",
        source="PathGen-1.6M",
        task="caption",
        question="",
        answer=text(row, "caption"),
        subfield="histopathology",
        meta={"wsi_id": wsi, "position": [x, y], "file_id": file_id},
    )
    return sample, (_picture(source, (wsi, str(file_id)), (x, y), slides),)


def _position(value: Any) -> tuple[int, int]:
    try:
        x, y = (int(str(number)) for number in value if isinstance(value, list))  # a text has characters, too
    except (TypeError, ValueError):
        raise DataError(f"position is {value!r}, where [x, y] in whole pixels is needed") from None
    return x, y


def _picture(source: Path, names: tuple[str, str], at: tuple[int, int], slides: Mapping[str, Path]) -> Picture:
    """A tile that is cut already, else a region of the slide of one of the names: wsi_id, file_id."""
    tile = f"images/{names[0]}/{at[0]}_{at[1]}"
    slide = slides.get(names[0]) or slides.get(names[1])
    try:
        return first_picture([source], [f"{tile}.jpg", f"{tile}.png"])
    except DataError as error:
        if slide is None:
            raise DataError(f"{error}, and there is no slides/{names[0]}.svs to cut it from") from error
    return Region(slide=slide, x=at[0], y=at[1], side=SIDE)


FORMAT = Format(source="the folder of PathGen-1.6M.json, and images/ or slides/", records=records)
