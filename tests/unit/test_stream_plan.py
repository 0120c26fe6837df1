"""The order of the stream, which is a pure function, and what a worker makes of a block. Without Ray."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathor1.data.stream import (
    BLOCK_BYTES,
    STREAM_SCHEMA,
    Block,
    Cursor,
    ReadBlock,
    RowGroup,
    SampleStream,
    StreamState,
    expand,
    fingerprint,
    plan,
    refuse_changed,
    row_groups,
)
from pathor1.errors import DataError
from pathor1.samples import SCHEMA, TASKS, Sample, Turn, from_row, to_row, write

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12)
seeds = st.integers(0, 2**32)
epochs = st.integers(0, 1000)


def png(side: int = 32, shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def some(name: str, **values: Any) -> Sample:
    question = Sample(id=name, source="s", task="mcq", question="?", options=("a", "b"), answer="B", images=(png(),))
    return replace(question, **values)


def groups_of(sizes: Sequence[int], *, rows_a_block: int = 32) -> list[RowGroup]:
    """Row groups of so many rows; together, `rows_a_block` rows are as much as a block may hold."""
    row = BLOCK_BYTES // rows_a_block
    return [
        RowGroup(file=f"{index // 3}.parquet", index=index % 3, rows=rows, size=rows * row)
        for index, rows in enumerate(sizes)
    ]


def rows_of(blocks: Sequence[Block]) -> list[tuple[str, int, int]]:
    """File, row group and row, of every row in the order in which they come out."""
    found: list[tuple[str, int, int]] = []
    for block in blocks:
        held = [(group.file, group.index, row) for group in block.groups for row in range(group.rows)]
        found.extend(held[place] for place in block.order)
    return found


# ---------------------------------------------------------------------- the order


@given(sizes, seeds, epochs, st.booleans())
@settings(deadline=None)
def test_every_row_of_every_file_once_an_epoch(sizes: list[int], seed: int, epoch: int, shuffle: bool) -> None:
    groups = groups_of(sizes)
    blocks = plan(groups, seed=seed, epoch=epoch, shuffle=shuffle)
    every = [(group.file, group.index, row) for group in groups for row in range(group.rows)]
    assert sorted(rows_of(blocks)) == sorted(every)
    assert all(sorted(block.order) == list(range(len(block.order))) for block in blocks)


@given(sizes, seeds, epochs, st.booleans())
@settings(deadline=None)
def test_blocks_follow_on_each_other_and_are_bounded(sizes: list[int], seed: int, epoch: int, shuffle: bool) -> None:
    blocks = plan(groups_of(sizes), seed=seed, epoch=epoch, shuffle=shuffle)
    first = 0
    for block in blocks:
        assert (block.first, block.epoch) == (first, epoch)
        assert len(block.order) == sum(group.rows for group in block.groups)
        assert sum(group.size for group in block.groups) <= BLOCK_BYTES or len(block.groups) == 1
        first += len(block.order)
    assert first == sum(sizes)
    for block, following in itertools.pairwise(blocks):  # no smaller than they have to be
        assert sum(group.size for group in (*block.groups, following.groups[0])) > BLOCK_BYTES


@given(sizes, seeds, epochs)
@settings(deadline=None)
def test_without_shuffling_the_order_is_that_of_the_files(sizes: list[int], seed: int, epoch: int) -> None:
    blocks = plan(groups_of(sizes), seed=seed, epoch=epoch, shuffle=False)
    assert rows_of(blocks) == [
        (group.file, group.index, row) for group in groups_of(sizes) for row in range(group.rows)
    ]


@given(sizes, seeds, epochs)
@settings(deadline=None)
def test_the_order_is_a_function_of_seed_and_epoch(sizes: list[int], seed: int, epoch: int) -> None:
    once, again = (plan(groups_of(sizes), seed=seed, epoch=epoch, shuffle=True) for _ in range(2))
    assert once == again


def test_another_epoch_or_seed_has_another_order_and_it_is_no_rotation() -> None:
    groups = groups_of([50] * 12)
    orders = [rows_of(plan(groups, seed=seed, epoch=epoch, shuffle=True)) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            # Two random orders of 600 rows agree in one place on average.
            assert sum(one == two for one, two in zip(order, other, strict=True)) < 20
        follows = [one[:2] == two[:2] and two[2] - one[2] == 1 for one, two in itertools.pairwise(order)]
        assert sum(follows) < 20


def test_a_shuffle_mixes_rows_of_files_that_lie_far_apart() -> None:
    """Row groups of a block come from anywhere, and rows of a block are mixed: no batch is of one file alone."""
    groups = groups_of([64] * 24, rows_a_block=256)
    first_blocks = [plan(groups, seed=0, epoch=epoch, shuffle=True)[0].groups for epoch in range(20)]
    assert {group for members in first_blocks for group in members} == set(groups)
    order = rows_of(plan(groups, seed=0, epoch=0, shuffle=True))
    for start in range(0, len(order), 64):
        assert len({(file, index) for file, index, _ in order[start : start + 64]}) == 4


# ---------------------------------------------------------------------- files


def fill(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for path in paths:
        path.write_bytes(b"")
    return paths


def test_files_folders_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b, a, _ = fill(tmp_path / "d", "b.parquet", "a.parquet", "notes.txt")
    (c,) = fill(tmp_path / "d" / "deep", "c.parquet")
    assert expand([str(b)]) == [b]
    assert expand([str(tmp_path / "d")]) == [a, b]
    assert expand([str(tmp_path / "d" / "*.parquet")]) == [a, b]
    assert expand([str(tmp_path / "d" / "[b-z].parquet")]) == [b]
    assert expand([str(tmp_path / "d" / "?.parquet")]) == [a, b]
    assert expand([str(tmp_path / "d" / "**" / "*.parquet")]) == [a, b, c]
    monkeypatch.chdir(tmp_path)
    assert expand(["d/*.parquet"]) == [Path("d/a.parquet"), Path("d/b.parquet")]


def test_a_file_that_is_named_twice_is_read_once_and_the_order_of_naming_stays(tmp_path: Path) -> None:
    b, a = fill(tmp_path, "b.parquet", "a.parquet")
    assert expand([str(b), str(tmp_path), str(tmp_path / "*.parquet"), str(b)]) == [b, a]


def test_a_pattern_that_names_nothing_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "empty", "notes.txt")
    for pattern in (str(tmp_path / "empty"), str(tmp_path / "*.parquet"), str(tmp_path / "no" / "*.parquet")):
        with pytest.raises(DataError) as caught:
            expand([str(tmp_path / "given.parquet"), pattern])
        assert str(caught.value) == f"{pattern}: no Parquet file there"


def test_row_groups_are_those_of_the_footers(tmp_path: Path) -> None:
    write((some(f"{index}", images=()) for index in range(300)), tmp_path / "a.parquet")
    pq.write_table(SCHEMA.empty_table(), tmp_path / "b.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    found = [group for group in row_groups(files) if group.rows]
    assert [(group.file, group.index, group.rows) for group in found] == [
        (str(files[0]), 0, 256),
        (str(files[0]), 1, 44),
    ]
    assert found[0].size > found[1].size > 44 * len("0")


def test_sizes_are_those_of_the_pictures_however_well_a_file_is_packed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write((some(f"{index}", images=(index.to_bytes(4, "big") + bytes(50_000),)) for index in range(300)), path)
    first, second = row_groups([path])
    assert path.stat().st_size < 1_000_000
    assert 256 * 50_000 < first.size < 256 * 51_000
    assert 44 * 50_000 < second.size < 44 * 51_000


def test_files_without_a_sample_or_that_are_none_are_refused(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.parquet", tmp_path / "broken.parquet"
    pq.write_table(SCHEMA.empty_table(), empty)
    broken.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=f"^{empty}: no samples in the training data$"):
        row_groups([empty])
    with pytest.raises(DataError, match="no such file"):
        row_groups([tmp_path / "none.parquet"])
    with pytest.raises(DataError, match="not a Parquet file"):
        row_groups([broken])


# ---------------------------------------------------------------------- a block, read


def read_block(block: Block, *, tasks: tuple[str, ...] = ("mcq",), **values: Any) -> list[dict[str, Any]]:
    """The rows that a worker makes of a block."""
    tables = list(ReadBlock(block=block, tasks=tasks, **{"min_pixels": 784, "max_pixels": 784, **values})())
    assert all(table.schema.equals(STREAM_SCHEMA) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def blocks_of(*paths: Path, shuffle: bool = False) -> list[Block]:
    return plan(row_groups(paths), seed=0, epoch=2, shuffle=shuffle)


def test_pictures_come_out_within_the_budget_and_the_rest_as_it_was(tmp_path: Path) -> None:
    small, large = png(28, 10), png(200, 20)
    asked = some("a", images=(small, large), meta={"k": [1]}, explanation="b B")
    write([asked], tmp_path / "a.parquet")
    (row,) = read_block(*blocks_of(tmp_path / "a.parquet"))
    assert (row["epoch"], row["position"], row["problem"]) == (2, 0, None)
    found = from_row(row)
    assert replace(found, images=()) == replace(asked, images=())
    assert found.images[0] == small
    fitted = Image.open(io.BytesIO(found.images[1]))
    assert (fitted.size, fitted.getpixel((5, 5))) == ((28, 28), (20, 0, 0))


def test_an_unusable_row_says_why_and_carries_no_picture(tmp_path: Path) -> None:
    rows = [
        some("sound"),
        some("broken", images=(png(), b"no picture"), meta={"k": 1}),
        some("strip", images=(png()[:40],)),
        some("answer", answer="D"),
        some("meta"),
    ]
    table = [to_row(row) for row in rows]
    table[-1]["meta"] = "{"
    pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), tmp_path / "a.parquet")
    found = read_block(*blocks_of(tmp_path / "a.parquet"))
    assert [row["id"] for row in found] == ["sound", "broken", "strip", "answer", "meta"]
    assert [row["position"] for row in found] == [0, 1, 2, 3, 4]
    assert found[0]["problem"] is None
    assert len(found[0]["images"]) == 1
    for row, reason in zip(
        found[1:], ("10 bytes that are no picture", "picture", "the answer 'D'", "not JSON"), strict=True
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


def test_files_of_other_writers_are_read_beside_ours(tmp_path: Path) -> None:
    """Their strings have wide offsets, and a column in which nothing stands has no type."""
    write([some("a", subfield="ihc")], tmp_path / "a.parquet")
    wide = {"id": pa.large_string(), "images": pa.large_list(pa.large_binary()), "subfield": pa.null()}
    schema = pa.schema([pa.field(each.name, wide.get(each.name, each.type)) for each in SCHEMA])
    table = pa.Table.from_pylist([to_row(some("b"))], schema=schema)
    pq.write_table(table.append_column("more", pa.array([1])), tmp_path / "b.parquet")
    (block,) = blocks_of(tmp_path / "a.parquet", tmp_path / "b.parquet")
    found = read_block(block, min_pixels=1, max_pixels=10_000)
    assert [from_row(row) for row in found] == [some("a", subfield="ihc"), some("b")]


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


def test_a_name_with_brackets_is_a_file_and_a_glob_gives_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a[1].parquet").touch()
    (tmp_path / "b.parquet").mkdir()
    assert expand([str(tmp_path / "a[1].parquet")]) == [tmp_path / "a[1].parquet"]
    assert expand([str(tmp_path / "*.parquet")]) == [tmp_path / "a[1].parquet"]


# ---------------------------------------------------------------------- what a place is a place in


def state_of(files: list[Path], *, cursor: Cursor | None = None) -> StreamState:
    return StreamState(cursor=cursor or Cursor(), seed=0, data=fingerprint(row_groups(files)))


def test_files_that_were_moved_are_the_same_data(tmp_path: Path) -> None:
    write([some("a"), some("b")], tmp_path / "old/set.parquet")
    state = state_of([tmp_path / "old/set.parquet"])
    assert (state.data.files, state.data.rows) == (1, 2)
    (tmp_path / "old").rename(tmp_path / "new")
    refuse_changed(row_groups([tmp_path / "new/set.parquet"]), state)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([some("a"), some("b"), some("c")], "1 files of 2 rows have become 1 of 3"),
        ([some("a"), some("c")], "its 1 files have as many rows as before, and other ones"),  # another id
        ([some("a"), some("b", question="What?")], "its 1 files have as many rows as before, and other ones"),
    ],
)
def test_a_place_in_other_rows_is_refused_with_what_has_changed(
    tmp_path: Path, samples: list[Sample], said: str
) -> None:
    path = tmp_path / "set.parquet"
    write([some("a"), some("b")], path)
    state = state_of([path])
    write(samples, path)
    with pytest.raises(DataError, match=said):
        refuse_changed(row_groups([path]), state)
    with pytest.raises(DataError, match="has changed since the checkpoint"):
        stream_of(path, start=state)


def stream_of(path: Path, *, start: StreamState) -> SampleStream:
    return SampleStream(
        [str(path)], tasks=["mcq"], seed=0, shuffle=True, min_pixels=1, max_pixels=9999, workers=1, start=start
    )


def test_a_stream_that_goes_on_has_the_state_it_began_with(tmp_path: Path) -> None:
    write([some("a"), some("b")], tmp_path / "set.parquet")
    state = state_of([tmp_path / "set.parquet"], cursor=Cursor(epoch=3, position=1))
    assert stream_of(tmp_path / "set.parquet", start=state).state() == state
