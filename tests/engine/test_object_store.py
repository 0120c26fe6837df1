"""Samples that lie in an object store: checked, streamed and gone on with as the same files on disk are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import running
from questions import numbered
from stores import Store, s3_store

from pathor1 import places
from pathor1.cli import explain
from pathor1.data import plan
from pathor1.data.row_groups import expand, fingerprint, row_groups
from pathor1.data.stream import Reading, SampleStream, Source, StreamState
from pathor1.errors import DataError
from pathor1.samples import SCHEMA, Sample, read, to_row

TIME = 300
pytestmark = pytest.mark.timeout(600)
ROWS = 23


def write_as_others_do(samples: list[Sample], path: Path, group: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(map(to_row, samples)), schema=SCHEMA), path, row_group_size=group)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files with row groups of three and of five rows."""
    folder = tmp_path_factory.mktemp("files")
    write_as_others_do([numbered(number) for number in range(11)], folder / "train/a.parquet", 3)
    write_as_others_do([numbered(number) for number in range(11, ROWS)], folder / "train/b.parquet", 5)
    return folder


@pytest.fixture(scope="module")
def store(files: Path) -> Iterator[Store]:
    """A store with these files, which this process, and Ray's that are started later, have the environment for."""
    with s3_store("lab") as store, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in store.environment.items():
            patch.setenv(name, value)
        places._store.cache_clear()
        store.upload(files)
        yield store
    places._store.cache_clear()


# ---------------------------------------------------------------------- the command


def check(arguments: list[str], log: Path) -> tuple[int, str]:
    with running(["pathor1.cli", "data", "check", *arguments], log) as process:
        code = process.finish(TIME)
        return code, process.output()


def test_a_sound_set_is_described(store: Store, tmp_path: Path) -> None:
    code, output = check([store.uri("train/*.parquet")], tmp_path / "log")
    assert code == 0, output
    assert f"rows         {ROWS}, with {ROWS} pictures" in output


def test_bad_rows_are_named_by_their_uri_and_left_out_on_disk(store: Store, tmp_path: Path) -> None:
    rows = [numbered(number) for number in range(6)]
    rows[4] = replace(rows[4], answer="D")
    write_as_others_do(rows, tmp_path / "bad.parquet", 2)
    store.put("bad/set.parquet", (tmp_path / "bad.parquet").read_bytes())
    code, output = check([store.uri("bad"), "--fix", str(tmp_path / "good")], tmp_path / "log")
    assert code == 2, output
    uri = "s3://lab/bad/set.parquet"
    assert f"pathor1: {uri}, row group 2, row 5, sample 's4': the answer 'D' is none of the 2 options (A-B)" in output
    assert list(read(tmp_path / "good/set.parquet")) == [*rows[:4], rows[5]]
    assert pq.read_table(tmp_path / "good/set.left_out.parquet")["id"].to_pylist() == ["s4"]


def test_a_store_that_refuses_ends_the_command_in_one_line(store: Store, tmp_path: Path) -> None:
    uri = store.uri("train/a.parquet")
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    nobody |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    with running(["pathor1.cli", "data", "check", uri], tmp_path / "log", nobody) as process:
        assert process.finish(TIME) == 2, process.output()
        (line,) = process.output().splitlines()
    assert line.startswith(f"pathor1: {uri}: refused by http://127.0.0.1:")


# ---------------------------------------------------------------------- the stream


@pytest.fixture(scope="module")
def ray_here(store: Store) -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def small_blocks(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three row groups in a block, so that an epoch has several."""
    groups = row_groups(expand([str(files / "train")]))
    monkeypatch.setattr(plan, "BLOCK_BYTES", 2 * max(group.size for group in groups))


def rows_of(pattern: str, count: int, start: StreamState | None = None) -> tuple[list[tuple[object, ...]], StreamState]:
    """The next rows of a stream, with all that they hold, and its state behind them."""
    sources = [Source(name="train", groups=row_groups(expand([pattern])))]
    reading = Reading(tasks=("mcq",), min_pixels=784, max_pixels=784, shuffle=True, workers=2)
    with SampleStream(sources, seed=3, reading=reading, start=start) as stream:
        rows, dropped = stream.take(count)
        assert not dropped
        return [(row.number, row.epoch, row.position, row.sample) for row in rows], stream.state()


def test_a_stream_is_the_same_from_disk_and_from_a_store(
    ray_here: None, small_blocks: None, store: Store, files: Path
) -> None:
    local, remote = str(files / "train"), store.uri("train")
    whole, _ = rows_of(local, 2 * ROWS)
    assert [row[1] for row in whole] == [0] * ROWS + [1] * ROWS
    assert rows_of(remote, 2 * ROWS)[0] == whole
    # Laid down in the middle of an epoch and taken up again, from either, by what was read from the other.
    for first, second in ((remote, remote), (local, remote), (remote, local)):
        taken, state = rows_of(first, 9)
        assert state.sources[0].data == fingerprint(row_groups(expand([second])))
        assert taken + rows_of(second, ROWS, state)[0] == whole[: 9 + ROWS]


def test_a_file_that_is_gone_when_its_turn_comes_is_named(ray_here: None, store: Store, tmp_path: Path) -> None:
    groups = [
        replace(group, file=store.uri("train/gone.parquet")) for group in row_groups([store.uri("train/a.parquet")])
    ]
    reading = Reading(tasks=("mcq",), min_pixels=784, max_pixels=784, shuffle=True, workers=2)
    source = Source(name="train", groups=groups)
    with (
        pytest.raises(DataError, match="no such file") as caught,
        SampleStream([source], seed=3, reading=reading) as stream,
    ):
        stream.take(1)
    assert explain(caught.value) == "s3://lab/train/gone.parquet: no such file"
