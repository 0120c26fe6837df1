"""BMT: the beginning of a picture's name is its class."""

from __future__ import annotations

import pytest
from formats import png

from pathor1.data import formats
from pathor1.data.formats.bmt import records
from pathor1.data.importing import complete
from pathor1.errors import DataError
from pathor1.samples import Sample

FOLDER = "Brown Multicellular ThinPrep Database - images"
OPTIONS = (
    "negative for intraepithelial lesion or malignancy",
    "low-grade squamous intraepithelial lesion",
    "high-grade squamous intraepithelial lesion",
)
NAMES = ["ASCUS 3.JPG", "HSIL 12_2.JPG", "LSIL_7.jpg", "NIL 4.JPG", "NILM_004.JPG", "hsil.jpeg"]


@pytest.fixture
def source(tmp_path):
    (tmp_path / FOLDER).mkdir()
    for seed, name in enumerate(NAMES[::-1]):
        (tmp_path / FOLDER / name).write_bytes(png(seed))
    (tmp_path / FOLDER / "HSIL notes.txt").touch()
    (tmp_path / FOLDER / "._NIL 4.JPG").touch()
    return tmp_path


def test_classes_by_how_names_begin(source):
    unknown, *known = formats.load("bmt").records(source)
    assert (unknown.where, unknown.problem) == ("ASCUS 3.JPG", "the name begins with none of NIL, LSIL, HSIL")
    assert [each.where for each in known] == NAMES[1:]
    assert [each.pictures for each in known] == [(source / FOLDER / name,) for name in NAMES[1:]]
    assert [(each.id, each.answer, each.meta) for each in map(complete, known)] == [
        ("bmt/test/HSIL 12_2.JPG", "C", {"class": "HSIL", "picture": "HSIL 12_2.JPG", "patient": "12"}),
        ("bmt/test/LSIL_7.jpg", "B", {"class": "LSIL", "picture": "LSIL_7.jpg", "patient": "7"}),
        ("bmt/test/NIL 4.JPG", "A", {"class": "NILM", "picture": "NIL 4.JPG", "patient": "4"}),
        ("bmt/test/NILM_004.JPG", "A", {"class": "NILM", "picture": "NILM_004.JPG", "patient": "004"}),
        ("bmt/test/hsil.jpeg", "C", {"class": "HSIL", "picture": "hsil.jpeg"}),
    ]
    assert known[0].sample == Sample(
        id="bmt/test/HSIL 12_2.JPG",
        source="BMT",
        task="mcq",
        question="Which class of the Bethesda system does this cervical smear show?",
        options=OPTIONS,
        answer="C",
        subfield="cytology",
        split="test",
        meta={"class": "HSIL", "picture": "HSIL 12_2.JPG", "patient": "12"},
    )


def test_the_folder_of_pictures_itself(source):
    assert list(records(source / FOLDER)) == list(records(source))


def test_another_source_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}: holds no .jpg or .jpeg files; give the whole set, unpacked"):
        next(records(tmp_path))
    with pytest.raises(DataError, match=f"^{tmp_path}/x: no such folder; give the whole set, unpacked"):
        next(records(tmp_path / "x"))
