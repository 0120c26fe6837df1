"""BMT, Brown Multicellular ThinPrep (Synapse syn55259257): 600 pictures of cervical smears of 180 patients.

"Brown Multicellular ThinPrep Database - images"/*.JPG, flat. The class is how the name begins, in small or capital
letters: NIL or NILM, LSIL, HSIL. How patients are written in the names is not documented: `meta` has a name's first
number as "patient". Look at some names before you split by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pathor1.data.formats.classes import Classes, pictures_in
from pathor1.data.formats.record import Built, Format, Record, record
from pathor1.errors import DataError

INNER = "Brown Multicellular ThinPrep Database - images"
CLASSES = Classes(
    source="BMT",
    question="Which class of the Bethesda system does this cervical smear show?",
    options={
        "NILM": "negative for intraepithelial lesion or malignancy",
        "LSIL": "low-grade squamous intraepithelial lesion",
        "HSIL": "high-grade squamous intraepithelial lesion",
    },
    subfield="cytology",
)
# How a name begins -> the class.
PREFIXES = {"NIL": "NILM", "LSIL": "LSIL", "HSIL": "HSIL"}


def records(source: Path) -> Iterator[Record]:
    """The pictures by name. Raises DataError where the source is no folder, or holds no pictures."""
    folder = source / INNER if (source / INNER).is_dir() else source
    for path in pictures_in(folder, ".jpg", ".jpeg"):
        yield record(path.name, partial(_build, path))


def _build(path: Path) -> Built:
    names = [name for prefix, name in PREFIXES.items() if path.name.upper().startswith(prefix)]
    if not names:
        raise DataError(f"the name begins with none of {', '.join(PREFIXES)}")
    number = re.search(r"\d+", path.stem)
    meta = {"picture": path.name} | ({"patient": number.group()} if number else {})
    # Names are unique in the folder.
    return CLASSES.sample(f"bmt/test/{path.name}", names[0], split="test", meta=meta), (path,)


FORMAT = Format(source=f'the folder of "{INNER}", or that folder', records=records)
