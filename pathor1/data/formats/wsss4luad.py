"""WSSS4LUAD: 1.training/, 2.validation/ and 3.testing/, tissues of lung adenocarcinoma.

1.training/*.png have their label in the name, "NAME-[1 0 0].png": tumour, stroma, normal; in some copies it is written
"[1_0_0]" or "[1, 0, 0]". The others have img/*.png and mask/*.png of the same names; a mask, RGB or with a palette, is
(0, 64, 128) for tumour, (64, 128, 0) for stroma, (243, 152, 0) for normal, white elsewhere. A tissue is there where it
has at least 1 % of the labelled pixels. A picture with several tissues has no one answer, and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from pathor1.data.formats.classes import Classes, pictures_in
from pathor1.data.formats.record import Built, Format, Record, file_in, record
from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.errors import DataError

CLASSES = Classes(
    source="WSSS4LUAD",
    question="Which tissue does this section of lung adenocarcinoma show?",
    options={"tumour": "tumour epithelium", "stroma": "tumour-associated stroma", "normal": "normal tissue"},
    subfield="histopathology",
)
TRAINING = "1.training"
MASKED = {"2.validation": "val", "3.testing": "test"}
# The colours of `CLASSES`, in their order.
COLOURS = ((0, 64, 128), (64, 128, 0), (243, 152, 0))
LEAST_SHARE = 0.01
_LABEL = re.compile(r"\[\s*([01])[\s,_]+([01])[\s,_]+([01])\s*\]$")


def records(source: Path) -> Iterator[Record]:
    """The pictures, train, val, test. Raises DataError where no part is there, or a part has no pictures."""
    if not any((source / part).is_dir() for part in (TRAINING, *MASKED)):
        raise DataError(
            f"{source}: holds none of {', '.join((TRAINING, *MASKED))}; give the folder of WSSS4LUAD's parts"
        )
    if (source / TRAINING).is_dir():
        for path in pictures_in(source / TRAINING, ".png"):
            yield record(f"{TRAINING}/{path.name}", partial(_by_name, path))
    for part, split in MASKED.items():
        if (source / part).is_dir():
            for path in pictures_in(source / part / "img", ".png"):
                yield record(f"{part}/img/{path.name}", partial(_by_mask, path, source / part, split))


def _by_name(path: Path) -> Built:
    found = _LABEL.search(path.stem)
    if found is None:
        raise DataError("the name does not end with a label as [1 0 0]")
    return _build(path, "train", [int(number) for number in found.groups()])


def _by_mask(path: Path, part: Path, split: str) -> Built:
    mask = file_in(part, f"mask/{path.name}")
    try:
        pixels = np.asarray(decode(mask.read_bytes(), min_pixels=1, max_pixels=LARGEST_PIXELS))
    except OSError as error:
        raise DataError(f"picture {mask}: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"picture {mask}: {error}") from error
    areas = [int((pixels == colour).all(axis=-1).sum()) for colour in COLOURS]
    return _build(path, split, [int(area > 0 and area >= LEAST_SHARE * sum(areas)) for area in areas])


def _build(path: Path, split: str, label: list[int]) -> Built:
    if sum(label) != 1:
        raise DataError(f"{'several tissues' if any(label) else 'no tissue'}, {label}")
    name = list(CLASSES.options)[label.index(1)]
    # Names are unique in a part.
    return CLASSES.sample(f"wsss4luad/{split}/{path.name}", name, split=split, meta={"picture": path.name}), (path,)


FORMAT = Format(source=f"the folder of {TRAINING}/, 2.validation/ and 3.testing/", records=records)
