"""What one of the stream's workers makes of a block."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from questions import plain_png, rows_of, some

from pathor1.data.images import fit
from pathor1.data.plan import BLOCK_BYTES, Block, plan
from pathor1.data.read_block import STREAM_SCHEMA, ReadBlock
from pathor1.data.row_groups import row_groups
from pathor1.samples import SCHEMA, TASKS, Turn, from_row, to_row, write


def read_block(block: Block, *, tasks: tuple[str, ...] = ("mcq",), **values: Any) -> list[dict[str, Any]]:
    """The rows that a worker makes of a block."""
    tables = list(ReadBlock(block=block, tasks=tasks, **{"min_pixels": 784, "max_pixels": 784, **values})())
    assert all(table.schema.equals(STREAM_SCHEMA) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def blocks_of(*paths: Path, shuffle: bool = False) -> list[Block]:
    return plan(row_groups(paths), seed=0, epoch=2, shuffle=shuffle)


def test_pictures_come_out_within_the_budget_and_the_rest_as_it_was(tmp_path: Path) -> None:
    small, large = plain_png(28, 10), plain_png(200, 20)
    asked = some("a", images=(small, large), meta={"k": [1]}, explanation="b B")
    write([asked], tmp_path / "a.parquet")
    (row,) = read_block(*blocks_of(tmp_path / "a.parquet"))
    assert (row["epoch"], row["position"], row["problem"]) == (2, 0, None)
    found = from_row(row)
    assert replace(found, images=()) == replace(asked, images=())
    kept, fitted = (Image.open(io.BytesIO(image)) for image in found.images)
    assert (kept.size, kept.getpixel((5, 5))) == ((28, 28), (10, 0, 0))
    assert (fitted.size, fitted.getpixel((5, 5))) == ((28, 28), (20, 0, 0))


def test_an_unusable_row_says_why_and_carries_no_picture(tmp_path: Path) -> None:
    rows = [
        some("sound"),
        some("broken", images=(plain_png(), b"no picture"), meta={"k": 1}),
        some("strip", images=(plain_png()[:40],)),
        some("answer", answer="D"),
        some("meta"),
        some("behind", images=(plain_png(56, 30), plain_png(28, 40))),
    ]
    table = [to_row(row) for row in rows]
    table[4]["meta"] = "{"
    pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), tmp_path / "a.parquet")
    found = read_block(*blocks_of(tmp_path / "a.parquet"))
    assert [row["id"] for row in found] == ["sound", "broken", "strip", "answer", "meta", "behind"]
    assert [row["position"] for row in found] == [0, 1, 2, 3, 4, 5]
    assert [found[0]["problem"], found[5]["problem"]] == [None, None]
    for row in (0, 5):  # nothing of a row's pictures is left where a later one of them is broken
        budget = {"min_pixels": 784, "max_pixels": 784}
        assert found[row]["images"] == [fit(picture, **budget) for picture in rows[row].images]
    for row, reason in zip(
        found[1:5], ("10 bytes that are no picture", "picture", "the answer 'D'", "not JSON"), strict=True
    ):
        assert reason in row["problem"]
        assert row["images"] == []
        assert from_row(row).id == row["id"]


def test_other_tasks_are_passed_over_and_their_places_stay_empty(tmp_path: Path) -> None:
    rows = [some("0"), some("1", task="caption", question="", options=None, answer="A gland."), some("2")]
    rows.append(some("3", task="yes_no", options=None, answer="no"))
    talk = (Turn(role="user", text="?"), Turn(role="assistant", text="!"))
    rows.append(some("4", task="conversation", options=None, answer="", turns=talk))
    write(rows, tmp_path / "a.parquet")
    (block,) = blocks_of(tmp_path / "a.parquet")
    for tasks, places in ((("mcq",), [0, 2]), (("yes_no", "caption"), [1, 3]), (TASKS, [0, 1, 2, 3, 4]), ((), [])):
        found = read_block(block, tasks=tasks)
        assert [(row["id"], row["position"]) for row in found] == [(str(place), place) for place in places]


def test_rows_come_in_the_order_of_the_plan_with_their_places_in_the_epoch(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.Table.from_pylist([to_row(some(f"{index}", images=())) for index in range(330)], schema=SCHEMA)
    pq.write_table(table, path, row_group_size=60)
    sized = [replace(group, size=BLOCK_BYTES // 4) for group in row_groups([path])]  # as if they held large pictures
    blocks = plan(sized, seed=0, epoch=2, shuffle=True)
    assert [len(block.groups) for block in blocks] == [4, 2]
    found = [row for block in blocks for row in read_block(block)]
    assert [int(row["id"]) for row in found] == [60 * index + row for _, index, row in rows_of(blocks)]
    assert [row["position"] for row in found] == list(range(330))
    assert {row["epoch"] for row in found} == {2}


@pytest.mark.parametrize("passed", [0, 1, 63, 64, 65, 149, 150])
def test_rows_that_were_passed_before_are_not_read_again(tmp_path: Path, passed: int) -> None:
    write((some(f"{index}", images=()) for index in range(150)), tmp_path / "a.parquet")
    (block,) = blocks_of(tmp_path / "a.parquet", shuffle=True)
    assert read_block(block, skip=passed) == read_block(block)[passed:]


def test_tables_are_small_so_that_the_first_rows_come_at_once(tmp_path: Path) -> None:
    write((some(f"{index}", images=()) for index in range(150)), tmp_path / "a.parquet")
    (block,) = blocks_of(tmp_path / "a.parquet")
    tables = ReadBlock(block=block, tasks=("mcq",), min_pixels=1, max_pixels=784)()
    assert [table.num_rows for table in tables] == [64, 64, 22]


def test_large_pictures_end_a_table_before_it_has_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write((some(f"{index}") for index in range(10)), tmp_path / "a.parquet")
    (block,) = blocks_of(tmp_path / "a.parquet", shuffle=True)
    whole = read_block(block, skip=1)
    size = len(whole[0]["images"][0])
    monkeypatch.setattr("pathor1.data.read_block.BYTES_PER_TABLE", 2 * size + 1)
    tables = list(ReadBlock(block=block, tasks=("mcq",), min_pixels=784, max_pixels=784, skip=1)())
    assert [table.num_rows for table in tables] == [3, 3, 3]
    assert [row for table in tables for row in table.to_pylist()] == whole


def test_files_of_other_writers_are_read_beside_ours(tmp_path: Path) -> None:
    """Their strings have wide offsets, and a column in which nothing stands has no type."""
    write([some("a", subfield="ihc")], tmp_path / "a.parquet")
    wide = {"id": pa.large_string(), "images": pa.large_list(pa.large_binary()), "subfield": pa.null()}
    schema = pa.schema([pa.field(each.name, wide.get(each.name, each.type)) for each in SCHEMA])
    table = pa.Table.from_pylist([to_row(some("b"))], schema=schema)
    pq.write_table(table.append_column("more", pa.array([1])), tmp_path / "b.parquet")
    (block,) = blocks_of(tmp_path / "a.parquet", tmp_path / "b.parquet")
    found = read_block(block, min_pixels=1, max_pixels=10_000)
    shown = (fit(plain_png(), min_pixels=1, max_pixels=10_000),)
    assert [from_row(row) for row in found] == [some("a", subfield="ihc", images=shown), some("b", images=shown)]


def test_nulls_of_other_writers_become_problems_and_no_crash(tmp_path: Path) -> None:
    rows = [to_row(some(str(number))) for number in range(4)]
    rows[1]["answer"] = None
    rows[2]["images"] = [None]
    loose = pa.schema([column.with_nullable(True) for column in SCHEMA])
    pq.write_table(pa.Table.from_pylist(rows, schema=loose), tmp_path / "loose.parquet")
    blocks = plan(row_groups([tmp_path / "loose.parquet"]), seed=0, epoch=0, shuffle=False)
    read = ReadBlock(block=blocks[0], tasks=("mcq",), min_pixels=3136, max_pixels=3136)
    found = [(row["id"], row["problem"]) for table in read() for row in table.to_pylist()]
    assert found == [
        ("0", None),
        ("1", "sample '1': answer is null"),
        ("2", "sample '2': an entry of images is null"),
        ("3", None),
    ]
