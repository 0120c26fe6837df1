"""Quilt-VQA (wisdomik/Quilt_VQA): open and yes/no questions, as JSON with the whole benchmark, or as Parquet.

quiltvqa_test_w_ans.json: a list of {id, question, answer, answer_type: OPEN | CLOSED, and on CLOSED yes_no_answer};
the pictures are in images/, or in quilt_vqa/ when quilt_vqa.zip is unpacked, named by `image` where the item has it,
else <id>.jpg or .png. Parquet: columns image, question, answer, answer_type, context; fewer questions, and no
yes_no_answer. Where a folder has both, the JSON is read. `answer` of a CLOSED question is a sentence, kept as the
explanation. It is a benchmark: all is in the split "test", whatever the Parquet file is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pathor1.data.formats.record import Built, Format, Picture, Record, entries, field, picture_of_hub, record, text
from pathor1.data.formats.values import first_picture, json_list, known, name_of, parquet_files, rows_with
from pathor1.errors import DataError
from pathor1.samples import Sample

LICENSE = "CC-BY-NC-ND-3.0"
JSON = "quiltvqa_test_w_ans.json"
COLUMNS = ("image", "question", "answer", "answer_type")
_YES_NO_IN_FRONT = re.compile(r"(yes|no)\b", re.IGNORECASE)


def records(source: Path) -> Iterator[Record]:
    """The items in the order of the file or files."""
    path, layout = source / JSON, "Quilt-VQA's has id, question, answer, answer_type"
    if path.is_file():
        for place, item in enumerate(json_list(path, layout)):
            yield record(f"{JSON}, {place}", partial(_from_json, item, f"quilt-vqa/test/{place}", source))
        return
    if not (paths := parquet_files(source)):
        raise DataError(
            f"{source}: neither {JSON} nor *.parquet; give the folder that holds Quilt-VQA's JSON and pictures"
        )
    place = 0
    for path in paths:
        for row_number, row in enumerate(rows_with(path, COLUMNS, f"Quilt-VQA's are {', '.join(COLUMNS)}")):
            # Not the numbers of the JSON file, which has more items.
            build = partial(_from_row, row, f"quilt-vqa-parquet/test/{place}")
            yield record(f"{path.relative_to(source)}, {row_number}", build)
            place += 1


def _from_json(item: Any, id_: str, source: Path) -> Built:
    answer = text(entries(item), "yes_no_answer").lower() if _closed(item) else None
    return _build(item, id_, answer, _picture(item, source))


def _from_row(row: Mapping[str, Any], id_: str) -> Built:
    answer = _yes_no_of_row(row) if _closed(row) else None
    return _build(row, id_, answer, picture_of_hub(row["image"]))


def _closed(item: Any) -> bool:
    kind = text(entries(item), "answer_type").upper()
    if kind not in ("OPEN", "CLOSED"):
        raise DataError(f"answer_type is {kind!r}, where OPEN or CLOSED is needed")
    return kind == "CLOSED"


def _yes_no_of_row(row: Mapping[str, Any]) -> str:
    if row.get("yes_no_answer") is not None:
        return text(row, "yes_no_answer").lower()
    found = _YES_NO_IN_FRONT.match(text(row, "answer"))
    if found is None:
        raise DataError(f"no yes_no_answer, and answer does not begin with yes or no; import {JSON}, which has it")
    return found.group(1).lower()


def _build(item: Mapping[str, Any], id_: str, yes_no: str | None, picture: Picture) -> Built:
    answer = text(item, "answer")
    sample = Sample(
        id=id_,
        source="Quilt-VQA",
        task="open" if yes_no is None else "yes_no",
        question=text(item, "question"),
        answer=yes_no or answer,
        split="test",
        explanation=None if yes_no is None else answer,
        meta=known(item, "id", "image", "context") or None,
        license=LICENSE,
    )
    return sample, (picture,)


def _picture(item: Mapping[str, Any], source: Path) -> Path:
    if item.get("image") is not None:
        names = [text(item, "image")]
    else:
        stem = name_of(str(field(item, "id")), "id")
        names = [f"{stem}.jpg", f"{stem}.png"]
    folders = ("images", "quilt_vqa", "quilt_vqa/images", ".")
    return first_picture([source / folder for folder in folders], names)


FORMAT = Format(source=f"the folder of {JSON} and images/, or of the Parquet files", records=records)
