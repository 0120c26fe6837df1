"""PathMMU (jamessyx/PathMMU): data.json and images/, multiple choice over five subsets.

{subset: {split: [{No, img, question, options: ["A) ...", ...], answer: "D) ...", explanation, ...}]}}. Three to six
options; their texts may themselves hold ")", so only the letter in front is taken off. The licence keeps some pictures
out of images.zip (SocialPath, parts of Atlas and PathCLS): those items are left out, each with the file it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pathor1.data.formats.record import (
    Built,
    Format,
    Record,
    entries,
    file_in,
    is_in,
    letter_in_front,
    need_file,
    record,
    text,
    without_letter,
)
from pathor1.data.formats.values import list_of, split_of
from pathor1.errors import DataError
from pathor1.samples import Sample

LICENSE = "CC-BY-ND-4.0"


def records(source: Path) -> Iterator[Record]:
    """The items of all subsets and splits, in the order of the file."""
    import ijson

    path = need_file(source / "data.json", "give the folder that holds PathMMU's data.json and images/")
    subset = None
    with path.open("rb") as file:
        try:
            for subset, splits in ijson.kvitems(file, "", use_float=True):
                for split, items in _entries(splits, f"{path}: {subset}"):
                    for place, item in enumerate(items):
                        where = f"data.json, {subset}/{split}/{place}"
                        yield record(where, partial(_build, item, (subset, split, place), source))
        except ijson.JSONError as error:
            raise DataError(f"{path}: not JSON: {str(error).splitlines()[0]}") from error
    if subset is None:
        raise DataError(f"{path}: holds no table of subsets; give PathMMU's own file")


def _entries(splits: Any, where: str) -> Iterator[tuple[str, list[Any]]]:
    if not isinstance(splits, Mapping) or not all(isinstance(items, list) for items in splits.values()):
        raise DataError(f"{where} is no table of splits; this is not PathMMU's data.json")
    yield from splits.items()


def _build(item: Any, at: tuple[str, str, int], source: Path) -> Built:
    subset, split, place = at
    options = tuple(without_letter(str(option)) for option in list_of(entries(item), "options"))
    answer = letter_in_front(text(item, "answer"))
    if answer is None:
        raise DataError(f"the answer {item['answer']!r} has no letter in front")
    sample = Sample(
        id=f"pathmmu/{subset}/{split}/{place}",
        source="PathMMU",
        task="mcq",
        question=text(item, "question"),
        options=options,
        answer=answer,
        split=split_of(split),
        explanation=text(item, "explanation") if item.get("explanation") else None,
        meta={"subset": subset, "No": item.get("No"), "img": item.get("img")},
        license=LICENSE,
    )
    return sample, (_picture(item, subset, source),)


def _picture(item: Mapping[str, Any], subset: str, source: Path) -> Path:
    """images/<img>, or where the rules for the gated parts put it: images/<subset>/<img>."""
    name = text(item, "img")
    for inner in (f"images/{name}", f"images/{subset}/{name}"):
        if is_in(source, inner):
            return source / inner
    return file_in(source, f"images/{name}")


FORMAT = Format(source="the folder of data.json and images/", records=records)
