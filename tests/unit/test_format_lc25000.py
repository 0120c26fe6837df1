"""LC25000: the folder of a picture is its class."""

from __future__ import annotations

import shutil

import pytest
from formats import png

from pathor1.data import formats
from pathor1.data.formats.lc25000 import records
from pathor1.data.importing import complete
from pathor1.errors import DataError
from pathor1.samples import Sample

LUNG = ("lung adenocarcinoma", "benign lung tissue", "lung squamous cell carcinoma")
COLON = ("colon adenocarcinoma", "benign colonic tissue")
PICTURES = [
    "lung_image_sets/lung_aca/lungaca1.jpeg",
    "lung_image_sets/lung_aca/lungaca10.jpeg",
    "lung_image_sets/lung_n/lungn1.jpeg",
    "lung_image_sets/lung_scc/1.jpeg",
    "colon_image_sets/colon_aca/colonca1.jpeg",
    "colon_image_sets/colon_n/1.jpeg",
]


@pytest.fixture
def source(tmp_path):
    for seed, name in enumerate(PICTURES[::-1]):
        path = tmp_path / "lung_colon_image_set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    (path.parent / "._lungaca1.jpeg").touch()  # as macOS leaves them
    (path.parent / "Thumbs.db").touch()
    return tmp_path


def test_pictures_of_all_classes_in_order(source):
    found = list(formats.load("lc25000").records(source))
    assert [each.where for each in found] == PICTURES
    assert [each.pictures for each in found] == [(source / "lung_colon_image_set" / name,) for name in PICTURES]
    assert [each.problem for each in found] == [None] * 6
    samples = [complete(each) for each in found]
    assert [sample.id for sample in samples] == [
        "lc25000/test/lung_aca/lungaca1.jpeg",
        "lc25000/test/lung_aca/lungaca10.jpeg",
        "lc25000/test/lung_n/lungn1.jpeg",
        "lc25000/test/lung_scc/1.jpeg",
        "lc25000/test/colon_aca/colonca1.jpeg",
        "lc25000/test/colon_n/1.jpeg",
    ]
    assert [(sample.options, sample.answer) for sample in samples] == [
        (LUNG, "A"),
        (LUNG, "A"),
        (LUNG, "B"),
        (LUNG, "C"),
        (COLON, "A"),
        (COLON, "B"),
    ]
    assert [sample.question for sample in samples] == (
        ["What does this lung tissue show?"] * 4 + ["What does this colon tissue show?"] * 2
    )
    assert found[3].sample == Sample(
        id="lc25000/test/lung_scc/1.jpeg",
        source="LC25000",
        task="mcq",
        question="What does this lung tissue show?",
        options=LUNG,
        answer="C",
        subfield="histopathology",
        split="test",
        meta={"class": "lung_scc", "picture": "1.jpeg"},
    )


def test_the_inner_folder_and_one_organ_alone(source):
    both = list(records(source))
    assert list(records(source / "lung_colon_image_set")) == both
    shutil.rmtree(source / "lung_colon_image_set/lung_image_sets")
    assert list(records(source)) == both[4:]


def test_a_file_that_is_no_picture_is_named(source):
    path = source / "lung_colon_image_set" / PICTURES[0]
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"^picture {path}: 10 bytes that are no picture"):
        complete(next(records(source)))


def test_another_source_is_refused(source, tmp_path):
    with pytest.raises(
        DataError, match=r"holds neither lung_image_sets nor colon_image_sets; give the folder of lung_"
    ):
        next(records(source / "lung_colon_image_set/lung_image_sets"))
    (source / "lung_colon_image_set" / PICTURES[3]).unlink()
    with pytest.raises(DataError, match=r"lung_scc: holds no .jpeg or .jpg files; give the whole set, unpacked"):
        list(records(source))
    (source / "lung_colon_image_set/lung_image_sets/lung_scc").rmdir()
    with pytest.raises(DataError, match=r"lung_scc: no such folder; give the whole set, unpacked"):
        list(records(source))
