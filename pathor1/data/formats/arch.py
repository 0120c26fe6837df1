"""ARCH: books_set/ and pubmed_set/, captions of figures from textbooks and from PubMed.

<set>/captions.json = {"0": {caption, uuid}, ...}, in books_set also figure_id and letter, the part of the figure. The
picture is <set>/images/<uuid>.png or .jpg, the table does not say which. 35 pictures of books_set are missing.

A figure of books_set may have several pictures, each an entry with the caption of the whole figure, which is of all of
them. Each becomes a sample; meta.pictures_of_figure is how many there are. Those of figures with one picture, 2,720, of
which 32 are missing, are the 2,688 pairs of the paper's table 1.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pathor1.data.formats.record import Built, Format, Record, entries, need_file, record, text
from pathor1.data.formats.values import first_picture
from pathor1.errors import DataError
from pathor1.samples import Sample

LICENSE = "CC-BY-NC-SA-4.0"
SETS = ("books_set", "pubmed_set")


def records(source: Path) -> Iterator[Record]:
    """The items of the sets that are there. Raises DataError where none is, or one has no table of captions."""
    if source.name in SETS and not any((source / name).is_dir() for name in SETS):
        folders = [source]
    else:
        folders = [source / name for name in SETS if (source / name).is_dir()]
    if not folders:
        raise DataError(f"{source}: holds neither {' nor '.join(SETS)}; give the folder of both, or one of them")
    for folder in folders:
        captions = _captions(folder)
        figures = Counter(str(item.get("figure_id")) for item in captions.values() if isinstance(item, dict))
        for key, item in captions.items():
            yield record(f"{folder.name}/captions.json, {key}", partial(_build, item, key, folder, figures))


def _captions(folder: Path) -> Mapping[str, Any]:
    path = need_file(folder / "captions.json", "give the whole set, unpacked")
    try:
        found = json.loads(path.read_bytes())  # a few thousand, and no more
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no table of captions; give ARCH's own file")
    return found


def _build(item: Any, key: str, folder: Path, figures: Mapping[str, int]) -> Built:
    row = entries(item)
    uuid = text(row, "uuid")
    more = {name: row[name] for name in ("figure_id", "letter") if name in row}
    if "figure_id" in row:
        more["pictures_of_figure"] = figures[str(row["figure_id"])]
    sample = Sample(
        id=f"arch/{folder.name}/train/{key}",
        source="ARCH",
        task="caption",
        question="",
        answer=text(row, "caption"),
        meta={"set": folder.name, "uuid": uuid, **more},
        license=LICENSE,
    )
    return sample, (first_picture([folder], [f"images/{uuid}.png", f"images/{uuid}.jpg"]),)


FORMAT = Format(source="the folder of books_set/ and pubmed_set/, or one of them", records=records)
