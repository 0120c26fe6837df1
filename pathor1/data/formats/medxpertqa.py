"""MedXpertQA (TsinghuaC3I/MedXpertQA), the part with pictures: MM/{dev,test}.jsonl and images/, multiple choice.

{id: "MM-0", question, options: {letter: text}, label: letter, images: ["MM-0-a.jpeg", ...], medical_task, body_system,
question_type}. One to six pictures an item. The question ends with "Answer Choices: (A) ...", which is cut off. All of
medicine, not pathology alone: `meta` has what tells them apart. images.zip is unpacked beside MM/ or in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from pathor1.data.formats.record import Built, Format, Record, entries, field, json_lines, record, text
from pathor1.data.formats.values import first_picture, known, list_of, name_of
from pathor1.errors import DataError
from pathor1.samples import Sample

LICENSE = "MIT"
# The last one: a question may itself speak of answer choices.
_CHOICES = re.compile(r"\s*Answer Choices:\s*\(A\)(?!.*Answer Choices:\s*\(A\)).*\Z", re.DOTALL)


def records(source: Path) -> Iterator[Record]:
    """The items of dev, then of test."""
    folder = source / "MM" if (source / "MM").is_dir() else source
    paths = [path for path in (folder / "dev.jsonl", folder / "test.jsonl") if path.is_file()]
    if not paths:
        raise DataError(
            f"{folder}: neither dev.jsonl nor test.jsonl; give the folder that holds MedXpertQA's MM/ and images/"
        )
    images = (folder / "images", folder.parent / "images")
    for path in paths:
        for place, item in enumerate(json_lines(path)):
            yield record(f"{path.name}, {place}", partial(_build, item, path.stem, place, images))


def _build(item: Any, split: str, place: int, images: tuple[Path, ...]) -> Built:
    names = [name_of(name, "images") for name in list_of(entries(item), "images")]
    if not names:
        raise DataError("images is empty")
    sample = Sample(
        id=f"medxpertqa/{split}/{place}",
        source="MedXpertQA",
        task="mcq",
        question=_CHOICES.sub("", text(item, "question")),
        options=_options(field(item, "options")),
        answer=text(item, "label"),
        split=split,
        meta=known(item, "id", "medical_task", "body_system", "question_type") or None,
        license=LICENSE,
    )
    return sample, tuple(first_picture(images, [name]) for name in names)


def _options(options: Any) -> tuple[str, ...]:
    """The texts from A on. Raises DataError where a letter is left out, as the label would then name another text."""
    given = {letter: option for letter, option in entries(options).items() if option is not None}
    letters = sorted(given)
    if letters != list(ascii_uppercase[: len(letters)]):
        raise DataError(f"options are lettered {', '.join(letters)}, where A, B, C ... are needed")
    return tuple(name_of(given[letter], f"options {letter}") for letter in letters)


FORMAT = Format(source="the folder of MM/ and images/", records=records)
