"""The reward lab: what it prints, what it refuses, and a reader that goes away."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathor1.errors import DataError, UserError
from pathor1.score import score_file

RIGHT = "<think>x</think><answer>B</answer>"
ROWS: list[dict[str, Any]] = [
    {"text": RIGHT, "answer": "B", "length": 90},
    {"text": "<answer>A.</answer>", "answer": "A", "task": "mcq"},
    {"text": "<think>x</think><answer>No</answer>", "answer": "no", "task": "yes_no", "length": 10},
]


def json_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def printed(
    path: Path, *, as_json: bool = False, max_length: int | None = None, cache_length: int | None = None
) -> list[str]:
    out = io.StringIO()
    score_file(path, out=out, as_json=as_json, max_length=max_length, cache_length=cache_length)
    return out.getvalue().splitlines()


def objects(path: Path, **limits: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(path, as_json=True, **limits)]


def test_the_table(tmp_path: Path) -> None:
    lines = printed(json_lines(tmp_path / "a.jsonl", ROWS), max_length=100, cache_length=40)
    assert [line.split(maxsplit=5) for line in lines] == [
        ["row", "format", "accuracy", "length", "total", "why"],
        [
            "1",
            "1.000",
            "1.000",
            "-0.750",
            "1.250",
            "format: right; accuracy: B is right; length: 90 tokens, 60 are free",
        ],
        ["2", "0.000", "0.000", "-", "0.000", "format: no <think>; accuracy: answer 'A.' is not a single letter A-F"],
        ["3", "1.000", "1.000", "0.000", "2.000", "format: right; accuracy: no is right"],
        ["mean", "0.667", "0.667", "-0.375", "1.083", "of 3 rows"],
    ]
    assert (
        len(
            {line.index(word) for line, word in zip(lines, ("why", "format:", "format:", "format:", "of"), strict=True)}
        )
        == 1
    )


def test_json_lines(tmp_path: Path) -> None:
    result = objects(json_lines(tmp_path / "a.jsonl", ROWS))
    assert result[0] == {
        "row": 1,
        "format": 1.0,
        "accuracy": 1.0,
        "length": None,
        "total": 2.0,
        "parsed": "B",
        "why": "format: right; accuracy: B is right",
    }
    assert [row["parsed"] for row in result[:3]] == ["B", None, "no"]
    assert result[3] == {
        "rows": 3,
        "mean": {
            "format": pytest.approx(2 / 3),
            "accuracy": pytest.approx(2 / 3),
            "length": None,
            "total": pytest.approx(4 / 3),
        },
    }
    assert len(result) == 4


def test_parquet_says_the_same(tmp_path: Path) -> None:
    expected = objects(json_lines(tmp_path / "a.jsonl", ROWS), max_length=100, cache_length=40)
    columns = {name: [row.get(name) for row in ROWS] for name in ("length", "answer", "task", "text")}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=1)
    assert objects(tmp_path / "a.parquet", max_length=100, cache_length=40) == expected


def test_a_ledgers_tokens_go_before_its_length_part(tmp_path: Path) -> None:
    ledger = [{"text": RIGHT, "answer": "B", "task": "mcq", "length": -0.75, "response_tokens": 90, "reason": "x"}]
    pq.write_table(pa.Table.from_pylist(ledger), tmp_path / "step.parquet")
    assert objects(tmp_path / "step.parquet", max_length=100, cache_length=40)[0]["length"] == -0.75


def test_lengths_of_pandas_are_floats(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"text": RIGHT, "answer": "B", "length": 80.0}])
    assert objects(path, max_length=100, cache_length=40)[0]["length"] == -0.5


def test_rows_are_counted_as_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(row).encode() for row in ROWS))
    assert [row["row"] for row in objects(path)[:3]] == [1, 3, 5]


def test_rows_are_printed_before_the_next_is_read(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [ROWS[0], {"text": "x"}])
    out = io.StringIO()
    with pytest.raises(DataError, match="line 2"):
        score_file(path, out=out, as_json=True, max_length=None, cache_length=None)
    assert json.loads(out.getvalue())["total"] == 2.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a\.jsonl: no rows to score"),
        ("\n \n", "no rows to score"),
        ("text,answer\n", "line 1: not JSON \\(Expecting value at column 1\\)"),
        ('{"text": "x", "answer": "A"}\n{"text": ', "line 2: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"text": "x", "answer": "A", "length": ' + "9" * 5000 + "}", "line 1: not JSON"),
        ('["x", "A"]', "line 1: JSON but not an object"),
        ('{"answer": "A"}', "line 1: no text"),
        ('{"text": "x"}', "line 1: no answer"),
        ('{"text": null, "answer": "A"}', "line 1: no text"),
        ('{"text": ["x"], "answer": "A"}', "line 1: text is not a text"),
        ('{"text": "x", "answer": 1}', "line 1: answer is not a text"),
        (
            '{"text": "x", "answer": "A"}\n{"text": "x", "answer": "G"}',
            "line 2: the right answer 'G' is not a letter A-F",
        ),
        ('{"text": "x", "answer": "maybe", "task": "yes_no"}', "line 1: the right answer 'maybe' is neither"),
        ('{"text": "x", "answer": "A", "task": "open"}', "line 1: no accuracy reward for task 'open'"),
        ('{"text": "x", "answer": "A", "task": ["mcq"]}', "line 1: no accuracy reward for task"),
        ('{"text": "x", "answer": "A", "length": -1}', "line 1: length -1 is not a number of tokens"),
        ('{"text": "x", "answer": "A", "length": 1.5}', "line 1: length 1.5 is not"),
        ('{"text": "x", "answer": "A", "length": NaN}', "line 1: length nan is not"),
        ('{"text": "x", "answer": "A", "length": "7"}', "line 1: length '7' is not"),
        ('{"text": "x", "answer": "A", "length": true}', "line 1: length True is not"),
    ],
)
def test_lines_that_cannot_be_scored(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        printed(path)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone.jsonl: no such file"):
        printed(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="a folder"):
        printed(tmp_path)
    (tmp_path / "a.parquet").write_text('{"text": "x", "answer": "A"}\n')
    with pytest.raises(DataError, match="a.parquet: not a Parquet file"):
        printed(tmp_path / "a.parquet")
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="a.bin, line 1: not JSON"):
        printed(tmp_path / "a.bin")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="b.parquet, row 1: no answer"):
        printed(tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["x", None], "answer": ["A", "A"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="c.parquet, row 2: no text"):
        printed(tmp_path / "c.parquet")


@pytest.mark.parametrize(("max_length", "cache_length"), [(9, None), (None, 9), (9, 9), (9, 0)])
def test_limits_that_do_not_fit(tmp_path: Path, max_length: int | None, cache_length: int | None) -> None:
    path = json_lines(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UserError, match="--max-length and --cache-length"):
        printed(path, max_length=max_length, cache_length=cache_length)


def test_words_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"text": "<answer>病\ud800\x1b[31m</answer>", "answer": "A"}])
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    score_file(path, out=out, as_json=False, max_length=None, cache_length=None)
    assert rb"answer '\u75c5\ud800\x1b[31m' is not a single letter" in raw.getvalue()


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """As in `pathor1 score FILE | head -1`: the process ends well and says nothing."""
    path = json_lines(tmp_path / "a.jsonl", [ROWS[0]] * 20_000)
    code = (
        "import sys; from pathor1.score import score_file; "
        f"score_file({str(path)!r}, out=sys.stdout, as_json=False, max_length=None, cache_length=None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().split()[0] == b"row"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


def test_the_lab_starts_without_the_training_stack() -> None:
    code = (
        "import sys, pathor1.score; "
        "print([m for m in ('torch', 'ray', 'vllm', 'verl', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


FUNCTION = """
def grade(text, answer, sample):
    if sample.get("organ") == "broken":
        raise KeyError("organ")
    return 0.5 if sample["organ"] == answer else 0.25
"""
ORGANS: list[dict[str, Any]] = [
    {"text": RIGHT, "answer": "B", "organ": "B", "images": ["x"]},
    {"text": "no", "answer": "A", "organ": "B", "images": []},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_function_of_ones_own_says_the_accuracy_and_is_told_the_rows_other_columns(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION)
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        json_lines(path, ORGANS)
    else:
        pq.write_table(pa.Table.from_pylist(ORGANS), path)
    out = io.StringIO()
    score_file(path, out=out, as_json=True, max_length=None, cache_length=None, function=f"{tmp_path}/mine.py:grade")
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row.get("accuracy") for row in rows] == [0.5, 0.25, None]
    assert [row.get("total") for row in rows] == [1.5, 0.25, None]
    assert rows[0]["why"] == "format: right; accuracy: 0.5 by a function of one's own"
    assert rows[2]["mean"]["accuracy"] == 0.375


def test_a_row_that_a_function_has_no_value_for_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION)
    path = json_lines(tmp_path / "a.jsonl", [ORGANS[0], {**ORGANS[1], "organ": "broken"}])
    with pytest.raises(DataError, match=r"a.jsonl, line 2: .*mine.py:grade raised KeyError: 'organ'$"):
        score_file(
            path,
            out=io.StringIO(),
            as_json=True,
            max_length=None,
            cache_length=None,
            function=f"{tmp_path}/mine.py:grade",
        )
