"""What a run could not use is on record, once, and too much of it ends the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pathor1.data.left_out import LeftOut
from pathor1.data.row_groups import Fingerprint
from pathor1.data.stream import Cursor, SourceState, StreamRow, StreamState
from pathor1.errors import DataError
from pathor1.samples import Sample


def row(position: int, *, epoch: int = 0, source: str = "train") -> StreamRow:
    sample = Sample(id=f"s{position}", source="lab", task="mcq", question="?", answer="A")
    return StreamRow(number=0, source=source, epoch=epoch, position=position, sample=sample, problem=None)


def left_out(path: Path, *, cursor: Cursor | None = None, max_fraction: float = 0.3, rows: int = 10) -> LeftOut:
    sources = tuple(
        SourceState(name=name, weight=1.0, cursor=at, given=0, data=Fingerprint(files=1, rows=rows * times, digest=""))
        for name, times, at in (("train", 1, cursor or Cursor()), ("more", 2, Cursor(epoch=1)))
    )
    return LeftOut(path / "left_out.jsonl", start=StreamState(seed=0, sources=sources), max_fraction=max_fraction)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "left_out.jsonl").read_text().splitlines()]


def test_each_is_on_disk_at_once_with_its_place_and_reason(tmp_path: Path) -> None:
    left_out(tmp_path).add(row(4), "a broken picture")
    assert lines(tmp_path) == [
        {"data": "train", "epoch": 0, "position": 4, "id": "s4", "source": "lab", "why": "a broken picture"},
    ]


def test_more_than_the_share_of_one_epoch_ends_the_run(tmp_path: Path) -> None:
    record = left_out(tmp_path)
    for epoch in range(4):
        for position in range(3):
            record.add(row(position, epoch=epoch), "why")
    with pytest.raises(DataError) as caught:
        record.add(row(7, epoch=3), "why")
    assert str(caught.value) == (
        "4 of 10 training samples cannot be used, more than data.max_bad_fraction = 0.3 allows; "
        f"{tmp_path}/left_out.jsonl lists them, such as s0: why; s1: why; s2: why"
    )
    assert len(lines(tmp_path)) == 13, "the last one is on record, too"


def test_the_largest_share_of_an_epoch_of_one_source(tmp_path: Path) -> None:
    record = left_out(tmp_path)
    assert record.share == 0
    for position in range(3):
        record.add(row(position, source="more"), "why")  # 20 rows
    assert record.share == 3 / 20
    for epoch in range(3):
        record.add(row(5, epoch=epoch), "why")  # 10 rows
    assert record.share == 3 / 20
    record.add(row(6, epoch=2), "why")
    assert (record.share, record.count) == (2 / 10, 7)


def test_nothing_bad_is_allowed_at_zero(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^1 of 10 training samples"):
        left_out(tmp_path, max_fraction=0.0).add(row(0), "why")


def test_a_resumed_run_keeps_what_lies_before_its_place(tmp_path: Path) -> None:
    record = left_out(tmp_path)
    for epoch, position in ((0, 3), (0, 8), (1, 2), (1, 5)):
        record.add(row(position, epoch=epoch), "why")
    with (tmp_path / "left_out.jsonl").open("a") as file:
        file.write('{"epoch": 1, "posi')  # the run was killed here
    resumed = left_out(tmp_path, cursor=Cursor(epoch=1, position=5))
    assert [(entry["epoch"], entry["position"]) for entry in lines(tmp_path)] == [(0, 3), (0, 8), (1, 2)]
    resumed.add(row(5, epoch=1), "why")
    assert [entry["position"] for entry in lines(tmp_path)] == [3, 8, 2, 5]


def test_each_part_of_the_data_has_a_share_and_a_place_of_its_own(tmp_path: Path) -> None:
    record = left_out(tmp_path)
    for position in range(3):
        record.add(row(position), "why")
    for position in range(6):  # of twice as many rows
        record.add(row(position, source="more"), "why")
    with pytest.raises(DataError, match="^7 of 20 training samples"):
        record.add(row(7, source="more"), "why")
    left_out(tmp_path, cursor=Cursor(position=1))  # "more" goes on at its second epoch
    assert [(entry["data"], entry["position"]) for entry in lines(tmp_path)] == [
        ("train", 0),
        *(("more", position) for position in (0, 1, 2, 3, 4, 5, 7)),
    ]
