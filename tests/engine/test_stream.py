"""The stream through Ray Data: the same rows in the same order wherever it is taken up, with any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import png

from pathor1.data import stream
from pathor1.data.stream import Cursor, SampleStream, StreamState
from pathor1.errors import DataError
from pathor1.samples import SCHEMA, Sample, to_row

pytestmark = pytest.mark.timeout(600)
ROWS = 23
# Of these, one picture is broken and one row is of another task.
BROKEN, CAPTION = 7, 12


def question(number: int) -> Sample:
    made = Sample(
        id=f"s{number}",
        source="lab",
        task="mcq",
        question="Which?",
        options=("melanoma", "naevus"),
        answer="AB"[number % 2],
        images=(png(number, size=(28, 28)),),
    )
    if number == BROKEN:
        return replace(made, images=(png(number)[:60],))
    if number == CAPTION:
        return replace(made, task="caption", options=None, answer="a naevus")
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two files with row groups of three and of five rows, as other programs may write them."""
    folder = tmp_path_factory.mktemp("files")
    for name, numbers, group in (("a", range(11), 3), ("b", range(11, ROWS), 5)):
        table = pa.Table.from_pylist([to_row(question(number)) for number in numbers], schema=SCHEMA)
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=group)
    return [str(folder)]


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_blocks(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three row groups in a block, so that an epoch has several."""
    groups = stream.row_groups(stream.expand(files))
    monkeypatch.setattr(stream, "BLOCK_BYTES", 2 * max(group.size for group in groups))


def opened(files: list[str], *, workers: int = 2, seed: int = 3, start: StreamState | None = None) -> SampleStream:
    return SampleStream(
        files,
        tasks=["mcq"],
        seed=seed,
        shuffle=True,
        min_pixels=784,
        max_pixels=784,
        workers=workers,
        start=start,
    )


def places(source: SampleStream, count: int) -> list[tuple[int, int, str, bool]]:
    """Epoch, position, id and whether it can be used, of the next rows until `count` can be."""
    usable, dropped = source.take(count)
    rows = sorted([*usable, *dropped], key=lambda row: (row.epoch, row.position))
    return [(row.epoch, row.position, row.sample.id, row.problem is None) for row in rows]


def test_an_epoch_is_every_row_once_in_an_order_of_its_own(files: list[str]) -> None:
    rows = places(opened(files), 2 * (ROWS - 2))
    epochs = [[row for row in rows if row[0] == epoch] for epoch in (0, 1)]
    for epoch in epochs:
        assert {id_ for _, _, id_, _ in epoch} == {f"s{number}" for number in range(ROWS) if number != CAPTION}
        assert [id_ for _, _, id_, usable in epoch if not usable] == [f"s{BROKEN}"]
    assert [row[2] for row in epochs[0]] != [row[2] for row in epochs[1]]
    assert [row[2] for row in places(opened(files, seed=4), ROWS - 2)] != [row[2] for row in epochs[0]]


def test_any_number_of_workers_gives_the_same(files: list[str]) -> None:
    first = places(opened(files, workers=1), ROWS)
    assert places(opened(files, workers=2), ROWS) == first
    assert places(opened(files, workers=4), ROWS) == first


def test_taken_up_at_any_place_it_goes_on_as_if_it_had_not_been_laid_down(files: list[str]) -> None:
    whole = places(opened(files), 2 * ROWS)
    state = opened(files).state()
    for position in range(ROWS + 1):
        resumed = opened(files, workers=1 + position % 3, start=replace(state, cursor=Cursor(position=position)))
        expected = [row for row in whole if row[:2] >= (0, position)][:6]
        assert places(resumed, 6)[:6] == expected, f"from position {position}"


def test_the_state_after_a_row_is_the_place_of_the_next(files: list[str]) -> None:
    source = opened(files)
    whole = places(opened(files), ROWS)
    taken = places(source, 9)
    resumed = opened(files, start=source.state())
    assert taken + places(resumed, ROWS - 9) == whole


def test_a_file_that_is_cut_off_is_refused_before_anything_is_read(files: list[str], tmp_path: Path) -> None:
    data = (Path(files[0]) / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cut.parquet: not a Parquet file"):
        opened([str(tmp_path)])


def test_nothing_but_unusable_rows_ends_instead_of_turning_for_ever(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([to_row(question(BROKEN))] * 3, schema=SCHEMA)
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="none of the 3 training samples can be used; the last, 's7'"):
        opened([str(tmp_path)]).take(1)
    table = pa.Table.from_pylist([to_row(question(CAPTION))] * 3, schema=SCHEMA)
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="none of the 3 training samples has a task among mcq"):
        opened([str(tmp_path)]).take(1)
