"""What is wrong with a file of samples is said before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathor1.data.first_look import PICTURES, first_look
from pathor1.data.rendered import Settings, samples
from pathor1.errors import DataError
from pathor1.samples import SCHEMA, Sample, to_row

SETTINGS = Settings(seed=1, size=56, options=(4, 4), difficulty=0.3, disagreement=0.0)
GOOD = list(samples("train", PICTURES + 2, SETTINGS))


def look(path: Path, rows: list[Sample], tasks: tuple[str, ...] = ("mcq",)) -> None:
    pq.write_table(pa.Table.from_pylist([to_row(row) for row in rows], schema=SCHEMA), path)
    first_look([path], tasks=tasks, min_pixels=3136, max_pixels=3136)


def test_good_samples_pass(tmp_path: Path) -> None:
    look(tmp_path / "good.parquet", GOOD)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"options": None}, "a multiple-choice question without options"),
        ({"answer": "E"}, "the answer 'E' is none of the 4 options (A-D)"),
        ({"images": (b"no picture",)}, "10 bytes that are no picture"),
        ({"images": (GOOD[0].images[0][:300],)}, "a PNG picture that cannot be decoded"),
    ],
)
def test_a_bad_sample_is_named_with_its_place(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    path = tmp_path / "bad.parquet"
    rows = [*GOOD[:2], replace(GOOD[2], **change), *GOOD[3:]]  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        look(path, rows)
    assert str(caught.value).startswith(f"{path}, row 3, sample 'rendered/1/train/2': {problem}")
    assert "\n" not in str(caught.value)


def test_samples_of_other_tasks_are_passed_over(tmp_path: Path) -> None:
    other = replace(GOOD[0], id="other", task="caption", answer="", images=(b"no picture",))
    look(tmp_path / "other.parquet", [other, *GOOD])
    with pytest.raises(DataError, match="row 1, sample 'other': the answer is empty"):
        look(tmp_path / "other.parquet", [other, *GOOD], tasks=("mcq", "caption"))


def test_one_bad_picture_far_into_a_file_does_not_stop_a_run(tmp_path: Path) -> None:
    rows = [*GOOD[:-1], replace(GOOD[-1], images=(b"no picture",))]
    look(tmp_path / "late.parquet", rows)
