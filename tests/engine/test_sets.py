"""`pathor1 data check` and `pathor1 data import`, as a user runs them: whole files, killed and started again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import png
from processes import running, wait_until

from pathor1.samples import SCHEMA, Sample, read, to_row

TIME = 300
pytestmark = pytest.mark.timeout(900)


def sample(number: int, **values: Any) -> Sample:
    made = Sample(
        id=f"s{number}",
        source="lab",
        task="mcq",
        question="Which?",
        options=("melanoma", "naevus", "lentigo"),
        answer="ABC"[number % 3],
        images=(png(number),),
        split="train",
    )
    return replace(made, **values)


def write_as_others_do(samples: list[Sample], path: Path, *, group: int = 4) -> None:
    """A file with whatever is in it, which `samples.write` would refuse."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(map(to_row, samples)), schema=SCHEMA), path, row_group_size=group)


def command(arguments: list[str], log: Path) -> tuple[int, str]:
    with running(["pathor1.cli", "data", *arguments], log) as process:
        code = process.finish(TIME)
        return code, process.output()


def test_a_sound_set_is_described(tmp_path: Path) -> None:
    write_as_others_do([sample(number) for number in range(9)], tmp_path / "train.parquet")
    held_out = [sample(number, split="test", options=("a", "b", "c", "d")) for number in range(9, 12)]
    write_as_others_do(held_out, tmp_path / "test.parquet")
    code, output = command(["check", str(tmp_path)], tmp_path / "log")
    assert code == 0, output
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert lines["rows"] == "12, with 12 pictures"
    assert lines["split"] == "test 3 (25.0%), train 9 (75.0%)"
    assert lines["options"] == "3 9 (75.0%), 4 3 (25.0%)"
    assert lines["answer"] == "A 4 (33.3%), B 4 (33.3%), C 4 (33.3%)"
    assert "shared" not in lines


def test_what_is_wrong_is_named_by_file_group_and_row_and_left_out_on_request(tmp_path: Path) -> None:
    train, test = tmp_path / "set/train.parquet", tmp_path / "set/test.parquet"
    broken = png(3)[:40]
    no_picture = "40 bytes that are no picture, beginning with b'\\x89PNG\\r\\n\\x1a\\n'"
    rows = [sample(number) for number in range(12)]
    rows[3] = sample(3, images=(png(50), broken))
    rows[5] = sample(5, answer="D")
    rows[6] = sample(6, options=None)
    rows[9] = sample(9, id="s1")
    rows[10] = sample(10, images=(png(101),))
    write_as_others_do(rows, train)
    write_as_others_do([sample(number, split="test", images=(png(number),)) for number in (100, 101)], test)
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in (train, test)}
    code, output = command(["check", str(train), str(test), "--fix", str(tmp_path / "good")], tmp_path / "log")
    assert code == 2, output
    assert [line for line in output.splitlines() if line.startswith("pathor1: ")] == [
        f"pathor1: {train}, row group 0, row 4, sample 's3': picture 2: {no_picture}",
        f"pathor1: {train}, row group 1, row 6, sample 's5': the answer 'D' is none of the 3 options (A-C)",
        f"pathor1: {train}, row group 1, row 7, sample 's6': a multiple-choice question without options",
        f"pathor1: {train}, row group 2, row 10: its id is that of row 2 of {train}",
        f"pathor1: {train}, row group 2, row 11: its picture is held out as well, in row 2 of {test}",
        "pathor1: 5 of 14 rows cannot be used",
    ]
    assert "shared       1 pictures are in test and in train" in output
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in (train, test)} == before
    good = tmp_path / "good"
    assert sorted(path.name for path in good.iterdir()) == [
        "test.parquet",
        "train.left_out.parquet",
        "train.parquet",
    ]
    kept = [row for place, row in enumerate(rows) if place not in (3, 5, 6, 9, 10)]
    assert list(read(good / "train.parquet")) == kept
    left_out = pq.read_table(good / "train.left_out.parquet").to_pylist()
    assert [row["id"] for row in left_out] == ["s3", "s5", "s6", "s1", "s10"]
    assert left_out[1]["problem"] == "the answer 'D' is none of the 3 options (A-C)"
    code, output = command(["check", str(good / "train.parquet"), str(good / "test.parquet")], tmp_path / "log2")
    assert code == 0, output


def pathmmu(folder: Path, count: int) -> Path:
    """PathMMU's layout: `count` items in one split, every hundredth without its picture."""
    (folder / "images").mkdir(parents=True)
    for number in range(7):
        (folder / f"images/{number}.png").write_bytes(png(number))
    items = [
        {
            "No": number,
            "img": "gone.png" if number % 100 == 99 else f"{number % 7}.png",
            "question": f"Question {number}?",
            "options": ["A) one", "B) two (2)", "C) three"],
            "answer": "B) two (2)",
            "explanation": "seen",
        }
        for number in range(count)
    ]
    (folder / "data.json").write_text(json.dumps({"PubMed": {"val": items}}))
    return folder


def imported(out: Path) -> Iterator[Sample]:
    for path in sorted(out.glob("val/*.parquet")):
        yield from read(path)


def test_an_import_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    source, out = pathmmu(tmp_path / "source", 20_000), tmp_path / "out"
    script = tmp_path / "pathor1_test_once.py"
    script.write_text(
        "import ray, sys\n"
        "from pathlib import Path\n"
        "from pathor1.data import importing\n"
        "ray.init(address='local', num_cpus=4, include_dashboard=False)\n"
        "outcome = importing.run('pathmmu', Path(sys.argv[1]), Path(sys.argv[2]), workers=1, chunk=50)\n"
        "print(outcome)\n"
    )
    runner = ["pathor1_test_once", str(source), str(out)]
    environment = {"PYTHONPATH": str(tmp_path)}
    with running(runner, tmp_path / "log", environment) as process:
        wait_until(lambda: len(list(out.glob(".import/0*.json"))) >= 5, TIME, "five chunks done")
        process.kill()
    done = list(out.glob(".import/0*.json"))
    assert 5 <= len(done) < 400
    assert not (out / "import.json").exists()
    files = {path: path.stat().st_mtime_ns for path in (out / "val" / f"{each.stem}.parquet" for each in done)}
    with running(runner, tmp_path / "log2", environment) as process:
        assert process.finish(TIME) == 0, process.output()[-3000:]
    assert {path: path.stat().st_mtime_ns for path in files} == files, "what was done is not done again"
    numbers = [number for number in range(20_000) if number % 100 != 99]
    assert [one.question for one in imported(out)] == [f"Question {number}?" for number in numbers]
    assert {one.answer for one in imported(out)} == {"B"}
    assert {one.options for one in imported(out)} == {("one", "two (2)", "three")}
    assert [one.images for one in imported(out)][:7] == [(png(number),) for number in range(7)]
    left_out = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert len(left_out) == 200
    assert left_out[0] == {
        "where": "data.json, PubMed/val/99",
        "why": f"picture images/gone.png: not in {source}",
    }
    assert json.loads((out / "import.json").read_text())["written"] == {"val": 19_800}
    assert not (out / ".import").exists()


def test_a_source_of_another_layout_is_one_line(tmp_path: Path) -> None:
    code, output = command(["import", "pathmmu", str(tmp_path), "--out", str(tmp_path / "out")], tmp_path / "log")
    assert code == 2
    assert output.strip().splitlines()[-1] == (
        f"pathor1: {tmp_path}/data.json: no such file; give the folder that holds PathMMU's data.json and images/"
    )
    assert not (tmp_path / "out").exists()
