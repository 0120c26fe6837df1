"""Where a stream is, and what that is a place in. Without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from questions import some

from pathor1.data.row_groups import fingerprint, row_groups
from pathor1.data.sources import names, sources
from pathor1.data.stream import Cursor, Reading, SampleStream, Source, SourceState, StreamState, refuse_other
from pathor1.errors import DataError
from pathor1.recipe import Data
from pathor1.samples import Sample, write

READING = Reading(tasks=("mcq",), min_pixels=1, max_pixels=9999, shuffle=True, workers=1)


def source_of(path: Path, *, name: str = "train", weight: float = 1.0) -> Source:
    return Source(name=name, groups=row_groups([path]), weight=weight)


def state_of(*sources: Source, cursor: Cursor | None = None) -> StreamState:
    return StreamState(
        seed=0,
        sources=tuple(
            SourceState(
                name=each.name,
                weight=each.weight,
                cursor=cursor or Cursor(),
                given=0,
                data=fingerprint(each.groups),
            )
            for each in sources
        ),
    )


def test_files_that_were_moved_are_the_same_data(tmp_path: Path) -> None:
    write([some("a"), some("b")], tmp_path / "old/set.parquet")
    state = state_of(source_of(tmp_path / "old/set.parquet"))
    assert (state.sources[0].data.files, state.sources[0].data.rows) == (1, 2)
    (tmp_path / "old").rename(tmp_path / "new")
    refuse_other([source_of(tmp_path / "new/set.parquet")], state)


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
    state = state_of(source_of(path))
    write(samples, path)
    with pytest.raises(DataError, match=said):
        refuse_other([source_of(path)], state)
    with pytest.raises(DataError, match="has changed since the checkpoint"):
        SampleStream([source_of(path)], seed=0, reading=READING, start=state)


def test_a_stream_that_goes_on_has_the_state_it_began_with(tmp_path: Path) -> None:
    write([some("a"), some("b")], tmp_path / "set.parquet")
    source = source_of(tmp_path / "set.parquet")
    state = state_of(source, cursor=Cursor(epoch=3, position=1))
    assert SampleStream([source], seed=0, reading=READING, start=state).state() == state


def test_other_sources_or_weights_are_refused_with_both(tmp_path: Path) -> None:
    write([some("a")], tmp_path / "a.parquet")
    write([some("b")], tmp_path / "b.parquet")
    a, b = source_of(tmp_path / "a.parquet", name="a", weight=2), source_of(tmp_path / "b.parquet", name="b")
    state = state_of(a, b)
    refuse_other([a, b], state)
    for other in ([b, a], [a], [a, source_of(tmp_path / "b.parquet", name="b", weight=0.5)]):
        with pytest.raises(DataError, match=r"has changed since the checkpoint: a 2, b 1 has become "):
            refuse_other(other, state)


def test_weights_make_a_source_of_each_entry(tmp_path: Path) -> None:
    write([some("a"), some("b")], tmp_path / "x/set.parquet")
    write([some("c")], tmp_path / "y/set.parquet")
    entries = [str(tmp_path / "x"), str(tmp_path / "y/*.parquet")]
    (whole,) = sources(Data(train=entries))
    assert (whole.name, whole.rows, len(whole.groups)) == ("train", 3, 2)
    parts = sources(Data(train=entries, weights=[3.0, 1.0]))
    assert [(part.name, part.weight, part.rows) for part in parts] == [("x", 3.0, 2), ("y", 1.0, 1)]


def test_a_source_has_a_name_of_its_own_wherever_it_lies() -> None:
    entries = ["/a/pathmmu", "s3://bucket/quilt/*.parquet", "b/pathmmu.parquet", "/*.parquet", "c/pathmmu/"]
    assert names(entries) == ["pathmmu", "quilt", "pathmmu-2", "data", "pathmmu-3"]
