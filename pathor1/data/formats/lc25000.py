"""LC25000: lung_colon_image_set/, 25,000 pictures of five classes of lung and colon tissue.

{lung_image_sets/{lung_aca,lung_n,lung_scc},colon_image_sets/{colon_aca,colon_n}}/*.jpeg, 5,000 in each. The pictures
are turned and mirrored copies of about 1,250 originals, and nothing says which are of the same one: a random split has
copies of one original on both sides. So all are of the split "test".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pathor1.data.formats.classes import Classes, pictures_in
from pathor1.data.formats.record import Built, Format, Record, record
from pathor1.errors import DataError

INNER = "lung_colon_image_set"
ORGANS = {
    "lung_image_sets": Classes(
        source="LC25000",
        question="What does this lung tissue show?",
        options={
            "lung_aca": "lung adenocarcinoma",
            "lung_n": "benign lung tissue",
            "lung_scc": "lung squamous cell carcinoma",
        },
        subfield="histopathology",
    ),
    "colon_image_sets": Classes(
        source="LC25000",
        question="What does this colon tissue show?",
        options={"colon_aca": "colon adenocarcinoma", "colon_n": "benign colonic tissue"},
        subfield="histopathology",
    ),
}


def records(source: Path) -> Iterator[Record]:
    """The pictures, class by class. Raises DataError where neither organ is there, or one lacks a class."""
    root = source / INNER if (source / INNER).is_dir() else source
    organs = [organ for organ in ORGANS if (root / organ).is_dir()]
    if not organs:
        raise DataError(f"{source}: holds neither {' nor '.join(ORGANS)}; give the folder of {INNER}/")
    for organ in organs:
        for name in ORGANS[organ].options:
            for path in pictures_in(root / organ / name, ".jpeg", ".jpg"):
                yield record(f"{organ}/{name}/{path.name}", partial(_build, path, organ, name))


def _build(path: Path, organ: str, name: str) -> Built:
    # Names are unique in a class.
    sample = ORGANS[organ].sample(f"lc25000/test/{name}/{path.name}", name, split="test", meta={"picture": path.name})
    return sample, (path,)


FORMAT = Format(source=f"the folder of {INNER}/", records=records)
