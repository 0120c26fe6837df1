"""What Docling has found in a book, from the JSON that it writes (DoclingDocument), in the place of a detector.

The pictures of the pages, and all that comes after the layout, stay ours. A book's file is found by the name of the
PDF: "Atlas.pdf" -> "Atlas.json".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from pathor1.curation.detectors import PageInput, Region, of_boxes
from pathor1.errors import DataError

# Docling's lists of items, and a label for those items that have none.
_LISTS = {"texts": "text", "pictures": "picture", "tables": "table"}

Boxes = dict[int, list[tuple[str, tuple[float, ...]]]]


class DoclingJson:
    """A `Detector` that has been run elsewhere."""

    name = "Docling's JSON"

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise DataError(f"{folder}: no such folder; layout.weights is the folder of Docling's JSON files")

    def regions(self, page: PageInput) -> list[Region]:
        """The page's regions. Raises DataError where the book has no file, or it is none of Docling's."""
        path = self._folder / f"{PurePath(page.source).stem}.json"
        boxes = read(path).get(page.number, [])
        width, height = page.picture.size
        return of_boxes(
            [(label, (box[0] * width, box[1] * height, box[2] * width, box[3] * height), 1.0) for label, box in boxes],
            page,
        )


@lru_cache(maxsize=2)
def read(path: Path) -> Boxes:
    """Page -> label and box of each item, in shares of the page's width and height, from the top left."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; Docling's JSON of a book has the PDF's name") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    try:
        sizes = {int(number): page["size"] for number, page in document["pages"].items()}
        found: Boxes = {}
        for number, label, box in _items(document):
            size = sizes[number]
            found.setdefault(number, []).append((label, _shares(box, size["width"], size["height"])))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise DataError(f"{path}: is no document of Docling's ({error!r}); write it by `docling --to json`") from error
    return found


def _items(document: Mapping[str, Any]) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Page, label and box of each place where an item stands."""
    for name, label in _LISTS.items():
        for item in document.get(name, []):
            for place in item.get("prov", []):
                yield int(place["page_no"]), str(item.get("label") or label), place["bbox"]


def _shares(box: Mapping[str, Any], width: float, height: float) -> tuple[float, ...]:
    """Docling counts y from the foot of the page, where it does not say otherwise."""
    left, top, right, bottom = (float(box[side]) for side in ("l", "t", "r", "b"))
    if str(box.get("coord_origin", "BOTTOMLEFT")).upper().endswith("BOTTOMLEFT"):
        top, bottom = height - top, height - bottom
    return left / width, min(top, bottom) / height, right / width, max(top, bottom) / height
