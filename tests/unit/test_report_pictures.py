"""The report's pictures: found by id in long files, and made small enough for a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pathor1.data.rendered import render
from pathor1.report.pictures import find, thumbnail
from pathor1.samples import read


def encoded(width: int, height: int) -> bytes:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "stored", "shown", "kind"),
    [
        ((56, 28), (56, 28), (168, 84), "png"),
        ((159, 20), (159, 20), (318, 40), "png"),
        ((160, 160), (160, 160), (160, 160), "jpeg"),
        ((1000, 500), (320, 160), (320, 160), "jpeg"),
        ((200, 2000), (32, 320), (32, 320), "jpeg"),
    ],
)
def test_a_thumbnail_is_at_most_320_pixels_and_a_small_picture_is_enlarged_by_whole_numbers(
    size: tuple[int, int], stored: tuple[int, int], shown: tuple[int, int], kind: str
) -> None:
    made = thumbnail(encoded(*size))
    head, data = made.uri.split(",")
    assert head == f"data:image/{kind};base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == stored
    assert (made.width, made.height) == shown
    assert made.enlarged == (kind == "png")


def test_samples_are_found_in_any_of_the_files_and_no_file_is_opened_once_all_are(tmp_path: Path) -> None:
    one, two = (render(tmp_path / name, seed=seed, counts={"train": 5})["train"] for name, seed in (("a", 1), ("b", 2)))
    ids = ["rendered/1/train/4", "rendered/2/train/0"]
    gone = str(tmp_path / "gone.parquet")
    found, problems = find([gone, str(tmp_path / "c*"), str(tmp_path / "a"), str(two), "/gone/*", gone], ids)
    samples = {sample.id: sample for path in (one, two) for sample in read(path)}
    assert set(found) == set(ids)
    for name, entry in found.items():
        assert (entry.question, entry.options) == (samples[name].question, samples[name].options)
        assert entry.images == samples[name].images
    assert [problem.split(": ")[0] for problem in problems] == [gone, str(tmp_path / "c*")]


def test_pictures_are_read_only_of_row_groups_that_hold_a_wanted_sample(tmp_path: Path) -> None:
    path = render(tmp_path, seed=1, counts={"train": 520})["train"]  # 256 + 256 + 8
    last = list(read(path))[515]
    spoil(path, 1, "images")
    found, problems = find([str(path)], [last.id])
    assert problems == []
    assert found[last.id].images == last.images
    found, problems = find([str(path)], ["rendered/1/train/0", "rendered/1/train/300", last.id])
    assert set(found) == {"rendered/1/train/0"}  # of the file up to where it cannot be read
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: ")
    spoil(path, 1, "")
    assert find([str(path)], ["rendered/1/train/0"])[1] == []  # the second row group is not looked at


def spoil(path: Path, row_group: int, columns: str) -> None:
    """Writes zeros over the columns of a row group whose name begins so."""
    content = bytearray(path.read_bytes())
    metadata = pq.ParquetFile(path).metadata.row_group(row_group)
    for chunk in (metadata.column(column) for column in range(metadata.num_columns)):
        if chunk.path_in_schema.startswith(columns):
            start = min(place for place in (chunk.dictionary_page_offset, chunk.data_page_offset) if place)
            content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
