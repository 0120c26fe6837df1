"""PathVQA: open and yes/no questions, as Hugging Face has them or as they were published first.

flaviagiammarino/path-vqa: [data/]{train,validation,test}-*.parquet with the columns image, question, answer. The
original: qas/<split>/<split>_qa.pkl, a pickled list of {image: the picture's stem, question, answer}, and
images/<split>/<stem>.jpg. Where a folder has both, the Parquet files are read. A pickle can run code when it is loaded:
here it cannot, as no class or function that it names is looked up. No field tells the yes/no questions: their whole
answer is "yes" or "no", in any case. Several questions share a picture.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from pathor1.data.formats.record import (
    Built,
    Format,
    Picture,
    Record,
    entries,
    file_in,
    parquet_rows,
    picture_of_hub,
    record,
    text,
)
from pathor1.data.formats.values import parquet_files, split_of, yes_or_no
from pathor1.errors import DataError
from pathor1.samples import Sample

LICENSE = "MIT"
# "validation-00000-of-00003-ab12.parquet"; other files may lie beside them.
_FILE = re.compile(r"(train|validation|test)\b.*\.parquet")
# What reading a file that is no pickle, or a broken one, may raise.
_BROKEN = (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, OverflowError)


def records(source: Path) -> Iterator[Record]:
    """The items of all splits, in the order of the files."""
    if found := [path for path in parquet_files(source) if _FILE.fullmatch(path.name)]:
        yield from _from_parquet(found, source)
        return
    pickles = {split: source / f"qas/{split}/{split}_qa.pkl" for split in ("train", "val", "test")}
    if not any(path.is_file() for path in pickles.values()):
        raise DataError(
            f"{source}: neither (train|validation|test)-*.parquet nor qas/<split>/<split>_qa.pkl; "
            "give the folder that holds PathVQA's data/, or its qas/ and images/"
        )
    for split, path in pickles.items():
        if path.is_file():
            for place, item in enumerate(_load(path)):
                where = f"{path.relative_to(source)}, {place}"
                yield record(where, partial(_from_pickle, item, split, place, source))


def _from_parquet(paths: list[Path], source: Path) -> Iterator[Record]:
    places: Counter[str] = Counter()  # a split's items are numbered through all of its files
    for path in paths:
        split = split_of(path.name[: path.name.index("-")] if "-" in path.name else path.stem)
        for row_number, row in enumerate(parquet_rows(path, ["image", "question", "answer"])):
            where = f"{path.relative_to(source)}, {row_number}"
            yield record(where, partial(_from_row, row, f"pathvqa/{split}/{places[split]}", split))
            places[split] += 1


def _from_row(row: Mapping[str, Any], id_: str, split: str) -> Built:
    return _build(row, id_, split, picture_of_hub(row["image"]), {})


def _from_pickle(item: Any, split: str, place: int, source: Path) -> Built:
    stem = text(entries(item), "image")
    picture = file_in(source, f"images/{split}/{stem}.jpg")
    # Not the numbers of the Parquet files: those leave out what comes twice.
    return _build(item, f"pathvqa-original/{split}/{place}", split, picture, {"image": stem})


def _build(item: Mapping[str, Any], id_: str, split: str, picture: Picture, meta: Mapping[str, Any]) -> Built:
    answer = text(item, "answer")
    yes_no = yes_or_no(answer)
    sample = Sample(
        id=id_,
        source="PathVQA",
        task="yes_no" if yes_no else "open",
        question=text(item, "question"),
        answer=yes_no or answer,
        split=split,
        meta=meta or None,
        license=LICENSE,
    )
    return sample, (picture,)


class _Values(pickle.Unpickler):
    """Loads lists, dicts, texts and numbers: these name no class, and nothing else is asked for."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise DataError(f"it asks for {module_name[:80]!r} {global_name[:80]!r}; a list of plain texts has no need to")


def _load(path: Path) -> list[Any]:
    """The list in a pickle. Raises DataError where it is something else, or names any class or function."""
    try:
        with path.open("rb") as file:
            items = _Values(file, encoding="utf-8").load()
    except DataError as error:
        raise DataError(f"{path}: not loaded, as that could run code: {error}") from error
    except _BROKEN as error:
        raise DataError(f"{path}: not a pickle that can be read: {error}") from error
    if not isinstance(items, list):
        raise DataError(f"{path}: holds a {type(items).__name__}; PathVQA's is a list of image, question, answer")
    return items


FORMAT = Format(source="the folder of data/*.parquet, or of qas/ and images/", records=records)
