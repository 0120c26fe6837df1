"""WSSS4LUAD: labels in names and in masks, and pictures with several tissues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from formats import png
from PIL import Image

from pathor1.data import formats
from pathor1.data.formats.wsss4luad import records
from pathor1.data.importing import complete
from pathor1.errors import DataError
from pathor1.samples import Sample

OPTIONS = ("tumour epithelium", "tumour-associated stroma", "normal tissue")
TUMOUR, STROMA, NORMAL, WHITE = (0, 64, 128), (64, 128, 0), (243, 152, 0), (255, 255, 255)


def training(source: Path, *names: str) -> None:
    (source / "1.training").mkdir()
    for seed, name in enumerate(names):
        (source / "1.training" / name).write_bytes(png(seed))


def masked(
    source: Path, part: str, name: str, areas: dict[tuple[int, int, int], int], *, palette: bool = False
) -> None:
    """A picture of 40 x 30 and its mask, with so many pixels of each colour, the rest white."""
    pixels = np.full((1200, 3), 255, dtype=np.uint8)
    start = 0
    for colour, area in areas.items():
        pixels[start : start + area] = colour
        start += area
    mask = Image.fromarray(pixels.reshape(30, 40, 3))
    for folder in ("img", "mask"):
        (source / part / folder).mkdir(parents=True, exist_ok=True)
    (source / part / "img" / name).write_bytes(png(1, (40, 30)))
    if palette:
        mask = mask.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    mask.save(source / part / "mask" / name)


def test_labels_in_names(tmp_path):
    training(tmp_path, "a-[1 0 0].png", "b_[0_1_0].png", "c[0, 0, 1].png")
    found = list(formats.load("wsss4luad").records(tmp_path))
    assert [each.where for each in found] == [
        "1.training/a-[1 0 0].png",
        "1.training/b_[0_1_0].png",
        "1.training/c[0, 0, 1].png",
    ]
    assert [complete(each).answer for each in found] == ["A", "B", "C"]
    assert found[1].pictures == (tmp_path / "1.training/b_[0_1_0].png",)
    assert found[1].sample == Sample(
        id="wsss4luad/train/b_[0_1_0].png",
        source="WSSS4LUAD",
        task="mcq",
        question="Which tissue does this section of lung adenocarcinoma show?",
        options=OPTIONS,
        answer="B",
        subfield="histopathology",
        split="train",
        meta={"class": "stroma", "picture": "b_[0_1_0].png"},
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a-[1 1 0].png", "several tissues, [1, 1, 0]"),
        ("a-[1, 1, 1].png", "several tissues, [1, 1, 1]"),
        ("a-[0_0_0].png", "no tissue, [0, 0, 0]"),
        ("a.png", "the name does not end with a label as [1 0 0]"),
        ("a-[1 0].png", "the name does not end with a label as [1 0 0]"),
        ("[1 0 0]-a.png", "the name does not end with a label as [1 0 0]"),
        ("a-[2 0 0].png", "the name does not end with a label as [1 0 0]"),
    ],
)
def test_names_that_cannot_be_used_say_why(tmp_path, name, why):
    training(tmp_path, name, "z-[1 0 0].png")
    bad, good = records(tmp_path)
    assert good.problem is None
    assert (bad.where, bad.problem) == (f"1.training/{name}", why)


@pytest.mark.parametrize("palette", [False, True])
def test_labels_in_masks(tmp_path, palette):
    masked(tmp_path, "2.validation", "a.png", {NORMAL: 700}, palette=palette)
    masked(tmp_path, "3.testing", "a.png", {TUMOUR: 400}, palette=palette)
    masked(tmp_path, "3.testing", "b.png", {STROMA: 1200}, palette=palette)
    found = list(records(tmp_path))
    assert [(each.id, each.split, each.options, each.answer) for each in map(complete, found)] == [
        ("wsss4luad/val/a.png", "val", OPTIONS, "C"),
        ("wsss4luad/test/a.png", "test", OPTIONS, "A"),
        ("wsss4luad/test/b.png", "test", OPTIONS, "B"),
    ]
    assert [each.where for each in found] == ["2.validation/img/a.png", "3.testing/img/a.png", "3.testing/img/b.png"]
    assert found[0].pictures == (tmp_path / "2.validation/img/a.png",)


@pytest.mark.parametrize(
    ("areas", "why"),
    [
        ({TUMOUR: 594, STROMA: 6}, "several tissues, [1, 1, 0]"),  # 1 % of what is labelled, 0.5 % of all
        ({TUMOUR: 1189, STROMA: 11}, None),
        ({TUMOUR: 400, STROMA: 400, NORMAL: 400}, "several tissues, [1, 1, 1]"),
        ({}, "no tissue, [0, 0, 0]"),
        ({(1, 64, 128): 600}, "no tissue, [0, 0, 0]"),
    ],
)
def test_a_tissue_counts_from_a_hundredth_of_the_labelled_pixels(tmp_path, areas, why):
    masked(tmp_path, "3.testing", "a.png", areas)
    (only,) = records(tmp_path)
    assert only.problem == why


def test_masks_that_cannot_be_used_are_named(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        masked(tmp_path, "3.testing", name, {TUMOUR: 9})
    (tmp_path / "3.testing/mask/a.png").unlink()
    (tmp_path / "3.testing/mask/b.png").write_bytes(b"no picture")
    missing, broken, good = records(tmp_path)
    assert missing.problem == f"picture mask/a.png: not in {tmp_path}/3.testing"
    assert broken.problem is not None
    assert broken.problem.startswith(f"picture {tmp_path}/3.testing/mask/b.png: 10 bytes that are no picture")
    assert good.problem is None


def test_another_source_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds none of 1.training, 2.validation, 3.testing; give the folder of WSSS4"):
        next(records(tmp_path))
    (tmp_path / "1.training").mkdir()
    with pytest.raises(DataError, match=r"1.training: holds no .png files; give the whole set, unpacked"):
        next(records(tmp_path))
    (tmp_path / "1.training").rmdir()
    (tmp_path / "2.validation").mkdir()
    with pytest.raises(DataError, match=r"2.validation/img: no such folder; give the whole set, unpacked"):
        next(records(tmp_path))
