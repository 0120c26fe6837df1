"""OmniMedVQA (foreverbeliever/OmniMedVQA): QA_information/ and Images/ of OmniMedVQA.zip, multiple choice.

QA_information/{Open-access,Restricted-access}/<dataset>.json: lists of {image_path: "Images/...", question, option_A,
option_B[, option_C, ...], gt_answer, dataset, question_id, question_type, modality_type}. gt_answer is the text of an
option, not its letter. A question_id may come in several files. Pictures of the restricted sets are not in the archive:
those items are left out, each with the file it lacks. All modalities are read, X-rays too: meta's modality_type tells
them apart. Each picture has the licence of the set it was taken from.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pathor1.data.formats.record import Built, Format, Record, entries, file_in, letter_of, record, text
from pathor1.data.formats.values import json_list, known
from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample

ACCESS = ("Open-access", "Restricted-access")


def records(source: Path) -> Iterator[Record]:
    """The items of all files, by name."""
    paths = [path for access in ACCESS for path in sorted((source / "QA_information" / access).glob("*.json"))]
    if not paths:
        raise DataError(
            f"{source}: no QA_information/{ACCESS[0]}/*.json; give the folder of QA_information/ and Images/"
        )
    for path in paths:
        layout = "OmniMedVQA's has image_path, question, option_A, ..., gt_answer"
        for place, item in enumerate(json_list(path, layout)):
            within = f"{path.parent.name}/{path.stem}/{place}"
            yield record(f"{path.parent.name}/{path.name}, {place}", partial(_build, item, within, source))


def _build(item: Any, within: str, source: Path) -> Built:
    names = [f"option_{letter}" for letter in LETTERS if entries(item).get(f"option_{letter}")]
    options = tuple(text(item, name) for name in names)
    sample = Sample(
        id=f"omnimedvqa/test/{within}",
        source="OmniMedVQA",
        task="mcq",
        question=text(item, "question"),
        options=options,
        answer=letter_of(text(item, "gt_answer"), options),
        split="test",
        meta={
            "access": within.split("/", 1)[0],
            **known(item, "dataset", "question_id", "question_type", "modality_type", "image_path"),
        },
    )
    return sample, (file_in(source, text(item, "image_path")),)


FORMAT = Format(source="the folder of QA_information/ and Images/", records=records)
