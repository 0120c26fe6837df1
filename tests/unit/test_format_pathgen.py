"""PathGen-1.6M: tiles that are cut already, regions of slides, and items that have neither."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from formats import png
from PIL import Image

from pathor1.data import formats
from pathor1.data.formats.pathgen import records
from pathor1.data.formats.record import Region
from pathor1.data.importing import complete
from pathor1.errors import DataError
from pathor1.samples import Sample

ROWS = [
    {"wsi_id": "TCGA-A.1", "position": ["16", "32"], "caption": " Sheets of\ntumour cells. ", "file_id": "f1"},
    {"WSI_id": "TCGA-A.1", "position": ["48", "64"], "caption": "Stroma."},
    {"wsi_id": "TCGA-A.1", "position": ["100", "90"], "caption": "Necrosis.", "file_id": "f1"},
    {"wsi_id": "TCGA-B", "position": ["0", "5"], "caption": "Lymphocytes.", "file_id": "f2"},
]


@pytest.fixture
def source(tmp_path):
    """Two tiles of TCGA-A.1, its slide, and TCGA-B's slide as the GDC client lays it out, under another name."""
    (tmp_path / "images/TCGA-A.1").mkdir(parents=True)
    (tmp_path / "images/TCGA-A.1/16_32.jpg").write_bytes(png(1))
    (tmp_path / "images/TCGA-A.1/48_64.png").write_bytes(png(2))
    (tmp_path / "slides/f2/logs").mkdir(parents=True)
    (tmp_path / "slides/TCGA-A.1.svs").touch()
    (tmp_path / "slides/f2/TCGA-B-DX1.svs").touch()
    write(tmp_path, ROWS)
    return tmp_path


def write(folder: Path, rows: object) -> None:
    (folder / "PathGen-1.6M.json").write_text(json.dumps(rows), encoding="utf-8")


def slide(path: Path, *, width: int = 800, height: int = 752) -> np.ndarray:
    """A slide of noise that OpenSlide reads, tiled and lossless."""
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb")
    return pixels


def problem(folder: Path, row: object) -> str | None:
    write(folder, [row])
    (only,) = records(folder)
    assert only.sample is None
    assert only.where == "PathGen-1.6M.json, 0"
    return only.problem


def test_captions_and_what_is_known_of_them(source):
    found = list(formats.load("pathgen").records(source))
    assert [each.where for each in found] == [f"PathGen-1.6M.json, {place}" for place in range(4)]
    assert found[0].sample == Sample(
        id="pathgen/train/0",
        source="PathGen-1.6M",
        task="caption",
        question="",
        answer="Sheets of\ntumour cells.",
        subfield="histopathology",
        split="train",
        meta={"wsi_id": "TCGA-A.1", "position": [16, 32], "file_id": "f1"},
    )
    assert found[1].sample is not None
    assert found[1].sample.meta == {"wsi_id": "TCGA-A.1", "position": [48, 64], "file_id": None}
    assert [each.sample.id for each in found if each.sample] == [f"pathgen/train/{place}" for place in range(4)]


def test_a_tile_is_taken_before_the_slide_it_is_of(source):
    assert [each.pictures for each in records(source)] == [
        (source / "images/TCGA-A.1/16_32.jpg",),
        (source / "images/TCGA-A.1/48_64.png",),
        (Region(slide=source / "slides/TCGA-A.1.svs", x=100, y=90, side=672),),
        (Region(slide=source / "slides/f2/TCGA-B-DX1.svs", x=0, y=5, side=672),),
    ]


def test_a_slide_in_a_folder_is_found_without_its_file_id(source):
    write(source, [{"wsi_id": "TCGA-B-DX1", "position": ["1", "2"], "caption": "x"}])
    (only,) = records(source)
    assert only.pictures == (Region(slide=source / "slides/f2/TCGA-B-DX1.svs", x=1, y=2, side=672),)


def test_a_region_has_the_pixels_of_the_slide(source):
    pixels = slide(source / "slides/TCGA-A.1.svs")
    write(source, [{"wsi_id": "TCGA-A.1", "position": ["128", "80"], "caption": "At the lower right corner."}])
    (only,) = records(source)
    picture = np.asarray(Image.open(io.BytesIO(complete(only).images[0])))
    assert np.array_equal(picture, pixels[80 : 80 + 672, 128 : 128 + 672])


@pytest.mark.parametrize("position", [("129", "80"), ("128", "81"), ("-1", "0")])
def test_a_region_outside_of_the_slide_is_refused(source, position):
    slide(source / "slides/TCGA-A.1.svs")
    write(source, [{"wsi_id": "TCGA-A.1", "position": position, "caption": "x"}])
    (only,) = records(source)
    at = f"{source}/slides/TCGA-A.1.svs at {position[0]}, {position[1]}"
    with pytest.raises(DataError, match=f"^picture {at}: lies outside the slide's 800 x 752 pixels$"):
        complete(only)


def test_a_file_that_is_no_slide_is_refused(source):
    last = list(records(source))[-1]
    with pytest.raises(DataError, match="f2/TCGA-B-DX1.svs at 0, 5: a slide that cannot be read"):
        complete(last)


def test_items_that_cannot_be_used_say_why(source):
    good = ROWS[0]
    no_caption = {key: value for key, value in good.items() if key != "caption"}
    assert problem(source, no_caption) == "no field caption; it has wsi_id, position, file_id"
    assert problem(source, {"caption": "x"}) == "no field wsi_id or WSI_id; it has caption"
    for position in (["1"], ["1", "2", "3"], ["1.5", "2"], [1.5, 2], 12, "12", [None, "1"]):
        expected = f"position is {position!r}, where [x, y] in whole pixels is needed"
        assert problem(source, good | {"position": position}) == expected
    assert problem(source, good | {"caption": " "}) == "caption is ' ', where a text is needed"
    assert problem(source, "text") == "of type str, where a table of fields is needed"
    assert problem(source, good | {"wsi_id": "TCGA-C", "file_id": "f3"}) == (
        f"picture images/TCGA-C/16_32.jpg or images/TCGA-C/16_32.png: not in {source}, "
        "and there is no slides/TCGA-C.svs to cut it from"
    )


def test_a_bad_item_does_not_stop_the_others(source):
    write(source, [ROWS[0], {}, ROWS[1]])
    assert [each.sample is not None for each in records(source)] == [True, False, True]


def test_another_source_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"PathGen-1.6M.json: no such file; give the folder that holds it"):
        next(records(tmp_path))
    for other in ({"items": ROWS}, []):
        write(tmp_path, other)
        with pytest.raises(DataError, match=r"PathGen-1.6M.json: holds no list of items; give PathGen-1.6M's own file"):
            next(records(tmp_path))
    (tmp_path / "PathGen-1.6M.json").write_text("wsi_id,position", encoding="utf-8")
    with pytest.raises(DataError, match=r"PathGen-1.6M.json: not JSON"):
        next(records(tmp_path))
