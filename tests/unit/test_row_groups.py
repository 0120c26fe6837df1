"""Files of samples and what their footers say."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from questions import some

from pathor1.data.row_groups import expand, row_groups
from pathor1.errors import DataError
from pathor1.samples import SCHEMA, to_row, write


def fill(folder: Path, *names: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return [str(folder / name) for name in names]


def test_files_folders_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b, a, _ = fill(tmp_path / "d", "b.parquet", "a.parquet", "notes.txt")
    (c,) = fill(tmp_path / "d" / "deep", "c.parquet")
    assert expand([b]) == [b]
    assert expand([str(tmp_path / "d")]) == [a, b]
    assert expand([str(tmp_path / "d" / "*.parquet")]) == [a, b]
    assert expand([str(tmp_path / "d" / "[b-z].parquet")]) == [b]
    assert expand([str(tmp_path / "d" / "?.parquet")]) == [a, b]
    assert expand([str(tmp_path / "d" / "**" / "*.parquet")]) == [a, b, c]
    monkeypatch.chdir(tmp_path)
    assert expand(["d/*.parquet"]) == ["d/a.parquet", "d/b.parquet"]


def test_a_file_that_is_named_twice_is_read_once_and_the_order_of_naming_stays(tmp_path: Path) -> None:
    b, a = fill(tmp_path, "b.parquet", "a.parquet")
    assert expand([b, str(tmp_path), str(tmp_path / "*.parquet"), b]) == [b, a]


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
    rows = [to_row(some(f"{index}", images=(index.to_bytes(4, "big") + bytes(50_000),))) for index in range(300)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, path, row_group_size=256, compression="zstd", use_dictionary=False)
    first, second = row_groups([path])
    assert path.stat().st_size < 1_000_000
    assert 256 * 50_000 < first.size < 256 * 51_000
    assert 44 * 50_000 < second.size < 44 * 51_000


def test_files_without_a_sample_or_that_are_none_are_refused(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.parquet", tmp_path / "broken.parquet"
    pq.write_table(SCHEMA.empty_table(), empty)
    broken.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=f"^{empty}: no samples there$"):
        row_groups([empty])
    with pytest.raises(DataError, match="no such file"):
        row_groups([tmp_path / "none.parquet"])
    with pytest.raises(DataError, match="not a Parquet file"):
        row_groups([broken])


def test_a_name_with_brackets_is_a_file_and_a_glob_gives_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a[1].parquet").touch()
    (tmp_path / "b.parquet").mkdir()
    assert expand([str(tmp_path / "a[1].parquet")]) == [str(tmp_path / "a[1].parquet")]
    assert expand([str(tmp_path / "*.parquet")]) == [str(tmp_path / "a[1].parquet")]
