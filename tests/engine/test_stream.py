"""The stream through Ray Data: the same rows in the same order wherever it is taken up, with any number of workers."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import png
from questions import numbered

from pathor1.data import block_source, plan, read_block
from pathor1.data.dealer import EncodedRow, ReadEncoded
from pathor1.data.row_groups import expand, row_groups
from pathor1.data.stream import Cursor, Reading, SampleStream, Source, StreamState
from pathor1.errors import DataError
from pathor1.samples import SCHEMA, Sample, to_row, write

Opener = Callable[..., SampleStream]

pytestmark = pytest.mark.timeout(600)
ROWS = 23
# Of these, one picture is broken and one row is of another task.
BROKEN, CAPTION = 7, 12


def question(number: int) -> Sample:
    made = numbered(number)
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

    here = Path(__file__).parent
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": f"{here}:{here.parent}"}},  # one encoding is of this file
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_blocks(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three row groups in a block, so that an epoch has several."""
    groups = row_groups(expand(files))
    monkeypatch.setattr(plan, "BLOCK_BYTES", 2 * max(group.size for group in groups))


@pytest.fixture
def opened(files: list[str]) -> Iterator[Opener]:
    """Opens streams, which are closed at the test's end."""
    with ExitStack() as streams:

        def open_one(
            *, workers: int = 2, seed: int = 3, start: StreamState | None = None, of: list[Source] | None = None
        ) -> SampleStream:
            reading = Reading(tasks=("mcq",), min_pixels=784, max_pixels=784, shuffle=True, workers=workers)
            sources = of or [Source(name="train", groups=row_groups(expand(files)))]
            return streams.enter_context(SampleStream(sources, seed=seed, reading=reading, start=start))

        yield open_one


def at(state: StreamState, position: int) -> StreamState:
    return replace(state, sources=(replace(state.sources[0], cursor=Cursor(position=position)),))


def places(source: SampleStream, count: int) -> list[tuple[int, int, str, bool]]:
    """Epoch, position, id and whether it can be used, of the next rows until `count` can be."""
    usable, dropped = source.take(count)
    rows = sorted([*usable, *dropped], key=lambda row: (row.epoch, row.position))
    return [(row.epoch, row.position, row.sample.id, row.problem is None) for row in rows]


def test_an_epoch_is_every_row_once_in_an_order_of_its_own(opened: Opener) -> None:
    rows = places(opened(), 2 * (ROWS - 2))
    epochs = [[row for row in rows if row[0] == epoch] for epoch in (0, 1)]
    for epoch in epochs:
        assert {id_ for _, _, id_, _ in epoch} == {f"s{number}" for number in range(ROWS) if number != CAPTION}
        assert [id_ for _, _, id_, usable in epoch if not usable] == [f"s{BROKEN}"]
    assert [row[2] for row in epochs[0]] != [row[2] for row in epochs[1]]
    assert [row[2] for row in places(opened(seed=4), ROWS - 2)] != [row[2] for row in epochs[0]]


def test_any_number_of_workers_gives_the_same(opened: Opener) -> None:
    first = places(opened(workers=1), ROWS)
    assert places(opened(workers=2), ROWS) == first
    assert places(opened(workers=4), ROWS) == first


def test_taken_up_at_any_place_it_goes_on_as_if_it_had_not_been_laid_down(opened: Opener) -> None:
    whole = places(opened(), 2 * ROWS)
    state = opened().state()
    for position in range(ROWS + 1):
        resumed = opened(workers=1 + position % 3, start=at(state, position))
        expected = [row for row in whole if row[:2] >= (0, position)][:6]
        assert places(resumed, 6)[:6] == expected, f"from position {position}"


def test_the_state_after_a_row_is_the_place_of_the_next(opened: Opener) -> None:
    source = opened()
    whole = places(opened(), ROWS)
    taken = places(source, 9)
    resumed = opened(start=source.state())
    assert taken + places(resumed, ROWS - 9) == whole


def test_a_file_that_is_cut_off_is_refused_before_anything_is_read(files: list[str], tmp_path: Path) -> None:
    data = (Path(files[0]) / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cut.parquet: not a Parquet file"):
        row_groups(expand([str(tmp_path)]))


def test_nothing_but_unusable_rows_ends_instead_of_turning_for_ever(opened: Opener, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([to_row(question(BROKEN))] * 3, schema=SCHEMA)
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="none of the 3 training samples can be used; the last, 's7'"):
        opened(of=[Source(name="train", groups=row_groups(expand([str(tmp_path)])))]).take(1)
    table = pa.Table.from_pylist([to_row(question(CAPTION))] * 3, schema=SCHEMA)
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="none of the 3 training samples has a task among mcq"):
        opened(of=[Source(name="train", groups=row_groups(expand([str(tmp_path)])))]).take(1)


def test_what_is_closed_leaves_nothing_of_ray_data_behind(opened: Opener) -> None:
    """Left open, it would start another Ray cluster when it is collected after this one is gone."""
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    def living() -> int:
        gc.collect()
        return sum(isinstance(found, StreamingExecutor) and found.is_alive() for found in gc.get_objects())

    before = living()
    stream = opened()
    stream.take(3)
    assert living() == before + 1
    stream.close()
    assert living() == before


def test_a_reader_that_is_far_enough_ahead_waits_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for 2 MB ahead, pictures of 150 kB in the dozens, and nobody who takes them."""
    turns: list[float] = []

    class Counted(block_source.Pause):
        def on_execution_step(self, executor: Any) -> None:
            turns.append(time.monotonic())
            super().on_execution_step(executor)

    monkeypatch.setattr(block_source, "BYTES_AHEAD", 2 << 20)
    monkeypatch.setattr(read_block, "ROWS_PER_TABLE", 4)
    monkeypatch.setattr(block_source, "Pause", Counted)
    many = [replace(numbered(number), images=(png(number),)) for number in range(400)]
    write(many, tmp_path / "many.parquet")
    reading = Reading(tasks=("mcq",), min_pixels=50176, max_pixels=50176, shuffle=True, workers=1)
    sources = [Source(name="many", groups=row_groups(expand([str(tmp_path)])))]
    with SampleStream(sources, seed=3, reading=reading) as stream:
        stream.take(4)
        time.sleep(3)  # until there is no room any more
        before = len(turns)
        time.sleep(3)
        assert len(turns) - before <= 3 / block_source.LOOK + 2, "thousands, where it asks again at once"
        stream.take(100)


def test_no_more_rows_lie_ready_than_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small pictures the bytes that may lie ready are an hour's: as many rows as the whole set has, and more."""
    made: list[int] = []

    class Counted(block_source.Pause):
        def on_execution_step(self, executor: Any) -> None:
            made.append(sum(op.metrics.num_task_outputs_generated for op in executor._topology))
            super().on_execution_step(executor)

    monkeypatch.setattr(block_source, "Pause", Counted)
    write([numbered(number) for number in range(2048)], tmp_path / "many.parquet")  # 32 tables
    sources = [Source(name="many", groups=row_groups(expand([str(tmp_path)])))]
    reading = Reading(tasks=("mcq",), min_pixels=784, max_pixels=784, shuffle=True, workers=1, rows_ahead=200)
    with SampleStream(sources, seed=0, reading=reading) as stream:
        first = places(stream, 1)
        until = time.monotonic() + 60
        while len(made) < 20 or made[-1] != made[-10]:  # three seconds in which nothing is made
            assert time.monotonic() < until
            time.sleep(0.1)
        assert made[-1] <= 8  # four that are wanted, one that is handed out, and those of a task that has to wait
        rest = places(stream, 2047)
    assert sorted(place[1] for place in first + rest) == list(range(2048))


@dataclass(frozen=True)
class Widened:
    """Encodes a row as 80 kB, as a small picture's patches are."""

    def __call__(self, table: pa.Table) -> pa.Table:
        columns = table.select(["id", "source", "epoch", "position", "problem"])
        return columns.append_column("patches", pa.array([bytes(80_000)] * len(table), pa.binary()))


def test_no_more_rows_are_encoded_than_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,048 rows in one block of the plan, 200 are to lie ready; they would all fit into the bytes that may."""
    made: list[int] = []

    class Counted(block_source.Pause):
        def on_execution_step(self, executor: Any) -> None:
            made.append(sum(op.metrics.rows_task_outputs_generated for op in executor._topology))
            super().on_execution_step(executor)

    monkeypatch.setattr(block_source, "Pause", Counted)
    monkeypatch.setattr(plan, "BLOCK_BYTES", 128 << 20)
    write([numbered(number) for number in range(2048)], tmp_path / "many.parquet")
    sources = [Source(name="many", groups=row_groups(expand([str(tmp_path)])))]
    reading = Reading(tasks=("mcq",), min_pixels=784, max_pixels=784, shuffle=True, workers=1, encoded=True)
    read = ReadEncoded(encode=Widened(), row=EncodedRow, told=(), rows_ahead=200)
    with SampleStream(sources, seed=0, reading=reading, read=read) as stream:
        first = places(stream, 1)
        until = time.monotonic() + 60
        while len(made) < 20 or made[-1] != made[-10]:  # three seconds in which nothing is made
            assert time.monotonic() < until
            time.sleep(0.1)
        assert 200 <= made[-1] <= 512  # those that are wanted, those handed out, and those that their worker holds
        rest = places(stream, 2047)
    assert sorted(place[1] for place in first + rest) == list(range(2048))


# ---------------------------------------------------------------------- mixtures


@pytest.fixture
def mixture(files: list[str]) -> list[Source]:
    """Three parts of the first file, and one of the second, which has as many rows."""
    a, b = (row_groups([Path(files[0]) / f"{name}.parquet"]) for name in "ab")
    return [Source(name="a", groups=a, weight=3.0), Source(name="b", groups=b, weight=1.0)]


def drawn(stream: SampleStream, count: int) -> list[tuple[int, str, int, int, str]]:
    usable, _ = stream.take(count)
    return [(row.number, row.source, row.epoch, row.position, row.sample.id) for row in usable]


def test_sources_come_by_their_weights_each_in_epochs_of_its_own(opened: Opener, mixture: list[Source]) -> None:
    rows = drawn(opened(of=mixture), 40)
    assert [number for number, *_ in rows] == list(range(40))
    for count in range(1, 41):
        assert abs(sum(source == "a" for _, source, *_ in rows[:count]) - 0.75 * count) <= 1
    for name, ids in (("a", range(11)), ("b", range(11, ROWS))):
        of_source = [row for row in rows if row[1] == name]
        for epoch in range(of_source[-1][2]):  # the last one is not over
            found = sorted(id_ for _, _, each, _, id_ in of_source if each == epoch)
            assert found == sorted(f"s{number}" for number in ids if number not in (BROKEN, CAPTION))
    assert [row for row in rows if row[1] == "a"][-1][2] == 2


def test_a_mixture_is_taken_up_at_any_place(opened: Opener, mixture: list[Source]) -> None:
    whole = drawn(opened(of=mixture), 30)
    stream = opened(of=mixture)
    for place in range(0, 24, 3):
        resumed = opened(of=mixture, workers=1 + place % 4, start=stream.state())
        assert drawn(resumed, 6) == whole[place : place + 6], f"from {place}"
        resumed.close()
        stream.take(3)
