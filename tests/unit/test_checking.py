"""What is known of rows before they are counted together: files as other programs write them. Without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import png

from pathor1 import cli
from pathor1.data.checking import Look, _Rows, refuse_taken
from pathor1.data.row_groups import row_groups
from pathor1.errors import RunError
from pathor1.samples import SCHEMA, Sample, to_row

NULLABLE = pa.schema([column.with_nullable(True) for column in SCHEMA])


def test_nulls_and_empty_row_groups_are_findings_and_no_traceback(tmp_path: Path) -> None:
    good = to_row(
        Sample(id="a", source="s", task="mcq", question="?", options=("x", "y"), answer="A", images=(png(1),))
    )
    rows = [good, {**good, "id": "b", "split": None}, {**good, "id": None}, {**good, "id": "c", "split": "test"}]
    path = tmp_path / "set.parquet"
    with pq.ParquetWriter(path, NULLABLE) as writer:
        for group in (rows[:2], [], rows[2:]):
            writer.write_table(pa.Table.from_pylist(group, schema=NULLABLE))
    groups = row_groups([path])
    assert [group.rows for group in groups] == [2, 0, 2]
    together = _Rows(groups)
    problems = []
    for place, group in enumerate(groups):
        for table in Look(place=place, group=group)():
            found = table.to_pylist()[0]
            facts = json.loads(found["rows"])
            problems += [row.get("why") for row in facts]
            ids, hashes = (np.frombuffer(found[name], dtype=np.uint64) for name in ("ids", "hashes"))
            together.add(facts, ids, hashes)
    assert problems == [None, "sample 'b': split is null", "sample None: id is null", None]
    assert list(together.repeated()) == []
    assert together.shared() == {("test", "train"): 1}
    assert [(bad.group, bad.row) for bad in together.leaked()] == [(0, 1)]


def test_a_folder_that_is_taken_is_refused_before_anything_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").touch()
    with pytest.raises(RunError, match="out: is not empty; give another folder by --fix"):
        refuse_taken([tmp_path / "a.parquet"], tmp_path / "out")
    with pytest.raises(RunError, match="two of the files have the same name"):
        refuse_taken([tmp_path / "a.parquet", tmp_path / "b/a.parquet"], tmp_path / "new")
    refuse_taken([tmp_path / "a.parquet"], tmp_path / "new")


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_workers_that_are_none(capsys: pytest.CaptureFixture[str], tmp_path: Path, workers: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "check", str(tmp_path), f"--workers={workers}"])
    assert end.value.code == 2
    assert f"{workers!r} is not a whole number above 0" in capsys.readouterr().err
