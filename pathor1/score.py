"""The reward lab: scores a file of responses with the rewards of RL, one row a response, and says why.

A row has `text` (what the model said) and `answer` (what is right), and may have `task` ("mcq", which is also what a
row without one is, or "yes_no") and `length` (tokens). Rows are read, scored and printed one by one, so a file may be
of any size. A ledger of a run is such a file; its number of tokens is `response_tokens`, which goes before `length`.
With a reward function of one's own, all other columns but pictures are what it is told of the sample.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

from pathor1.errors import DataError, UserError
from pathor1.rl.reward_function import RewardFailed, RewardFunction, load
from pathor1.rl.scoring import RewardWeights, RolloutScore, label_problem, score_rollout
from rewards import overlong_penalty

_FORM = 'a row is {"text": "<think>…</think><answer>A</answer>", "answer": "A"}, with "task" and "length" if you like'
_PARTS = ("format", "accuracy", "length", "total")
READ = ("text", "answer", "task", "length", "response_tokens")
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One response to score. `number` counts lines (JSON lines) or rows (Parquet) from 1; `length` is in tokens."""

    number: int
    text: str
    answer: str
    task: str
    length: int | None
    where: str  # for the line that says what is wrong with it
    sample: Mapping[str, Any]  # all columns that were read


@dataclass(slots=True)
class _Means:
    """Sums and counts of each part, over the rows that have it."""

    rows: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0.0))
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0))

    def add(self, parts: dict[str, float | None]) -> None:
        self.rows += 1
        for name, value in parts.items():
            if value is not None:
                self.sums[name] += value
                self.counts[name] += 1

    def values(self) -> dict[str, float | None]:
        return {name: self.sums[name] / self.counts[name] if self.counts[name] else None for name in _PARTS}


def score_file(
    path: str | Path,
    *,
    out: TextIO,
    as_json: bool,
    max_length: int | None,
    cache_length: int | None,
    function: str | None = None,
) -> None:
    """Prints the parts of each row's reward and why, then their means over the rows that have them.

    The total is format + accuracy, and the soft overlong punishment where both limits (in tokens) are given and the row
    has a length. `as_json` prints JSON lines: one object a row, at last {"rows": …, "mean": {…}}. When `out` is a pipe
    that its reader closes (`| head`), the rest is left out without an error.
    Raises UserError for limits that do not fit and a function that cannot be used, DataError for a file or a row that
    cannot be scored.
    """
    limits = _limits(max_length, cache_length)
    try:
        with _own(function) as own:
            _score(Path(path), out, as_json, limits, own)
        out.flush()
    except BrokenPipeError:
        # What is still in the buffer is written when Python ends; let that go nowhere instead of fail.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), out.fileno())


@contextlib.contextmanager
def _own(function: str | None) -> Iterator[RewardFunction | None]:
    """A reward function, for as long as the block lasts."""
    if function is None:
        yield None
        return
    from pathor1.recipe_rl import Reward  # pyarrow with it

    with RewardFunction(load(function, Reward().function_timeout)) as own:
        yield own


def read_rows(path: Path, *, whole: bool = False) -> Iterator[Row]:
    """The rows of a Parquet file (by its name, .parquet) or of JSON lines; with `whole`, all columns but pictures.

    Raises DataError, see `score_file`.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; give a .jsonl or .parquet file, {_FORM}")
    if path.is_dir():
        raise DataError(f"{path}: a folder; give one .jsonl or .parquet file")
    raw = _parquet_rows(path, whole) if path.suffix == ".parquet" else _json_rows(path)
    number = 0
    for number, where, values in raw:
        yield _row(number, where, values)
    if number == 0:
        raise DataError(f"{path}: no rows to score; {_FORM}")


def _limits(max_length: int | None, cache_length: int | None) -> tuple[int, int] | None:
    if max_length is None and cache_length is None:
        return None
    if max_length is None or cache_length is None:
        raise UserError("the length part needs both --max-length and --cache-length; give both or neither")
    try:
        overlong_penalty(0, max_length, cache_length)
    except ValueError as error:
        raise UserError(f"--max-length and --cache-length: {error}") from error
    return max_length, cache_length


def _score(path: Path, out: TextIO, as_json: bool, limits: tuple[int, int] | None, own: RewardFunction | None) -> None:
    means = _Means()
    for row in read_rows(path, whole=own is not None):
        if means.rows == 0 and not as_json:
            _print(out, _line("row", dict(zip(_PARTS, _PARTS, strict=True)), "why"))
        score, parts = _score_row(row, limits, own)
        means.add(parts)
        if as_json:
            _print(out, json.dumps({"row": row.number, **parts, "parsed": score.parsed, "why": score.reason}))
        else:
            _print(out, _line(str(row.number), _rounded(parts), score.reason))
    if as_json:
        _print(out, json.dumps({"rows": means.rows, "mean": means.values()}))
    else:
        what = "1 row" if means.rows == 1 else f"{means.rows} rows"
        _print(out, _line("mean", _rounded(means.values()), f"of {what}"))


def _score_row(
    row: Row, limits: tuple[int, int] | None, own: RewardFunction | None
) -> tuple[RolloutScore, dict[str, float | None]]:
    """The row's score and its parts; the length part is None where the row has no length or there are no limits."""
    try:
        accuracy = None if own is None else own(row.text, row.answer, row.sample)
    except RewardFailed as error:
        raise DataError(f"{row.where}: {error}") from error
    counted = limits is not None and row.length is not None
    max_length, cache_length = limits or (0, 0)
    score = score_rollout(
        row.text,
        answer=row.answer,
        task=row.task,
        response_tokens=row.length or 0,
        truncated=False,  # a file of texts does not say how each one ended
        max_response_tokens=max_length,
        overlong_cache_tokens=cache_length,
        weights=RewardWeights(length=1.0 if counted else 0.0),
        accuracy=accuracy,
    )
    parts: dict[str, float | None] = {
        "format": score.format,
        "accuracy": score.accuracy,
        "length": score.length if counted else None,
        "total": score.total,
    }
    return score, parts


def _rounded(parts: dict[str, float | None]) -> dict[str, str]:
    return {name: "-" if value is None else f"{value:.3f}" for name, value in parts.items()}


def _line(first: str, cells: dict[str, str], why: str) -> str:
    """Columns of a fixed width: the first row is printed before the second is read."""
    return f"{first:>6}  " + "  ".join(f"{cells[name]:>8}" for name in _PARTS) + f"  {why}"


def _print(out: TextIO, line: str) -> None:
    """A model's words may hold characters that the terminal's encoding lacks; those are escaped."""
    encoding = out.encoding or "utf-8"
    out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


_RawRow = tuple[int, str, dict[str, Any]]


def _json_rows(path: Path) -> Iterator[_RawRow]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield number, where, _json_object(line, where)


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        values: object = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}); {_FORM}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, nested without end
        raise DataError(f"{where}: not JSON ({error}); {_FORM}") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}: JSON but not an object; {_FORM}")
    return cast(dict[str, Any], values)


def _parquet_rows(path: Path, whole: bool) -> Iterator[_RawRow]:
    # Only here, so that JSON lines are scored without pyarrow's start-up time.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in READ or (whole and name != "images")]
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield number, f"{path}, row {number}", values
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from error


def _row(number: int, where: str, values: dict[str, Any]) -> Row:
    for name in ("text", "answer"):
        if values.get(name) is None:
            raise DataError(f"{where}: no {name}; {_FORM}")
        if not isinstance(values[name], str):
            raise DataError(f"{where}: {name} is not a text; {_FORM}")
    text, answer = values["text"], values["answer"]
    task = "mcq" if values.get("task") is None else values["task"]
    if problem := label_problem(answer, task):
        raise DataError(f"{where}: {problem}")
    length = values.get("length") if values.get("response_tokens") is None else values["response_tokens"]
    return Row(
        number=number,
        text=text,
        answer=answer,
        task=task,
        length=_tokens(length, where),
        where=where,
        sample={name: value for name, value in values.items() if name not in ("text", "images")},
    )


def _tokens(length: Any, where: str) -> int | None:
    """A number of tokens; pandas makes floats of integers in a column with gaps."""
    if length is None:
        return None
    whole = isinstance(length, int) or (isinstance(length, float) and length.is_integer())
    if isinstance(length, bool) or not whole or length < 0:
        raise DataError(f"{where}: length {length!r} is not a number of tokens, a whole number from 0; or leave it out")
    return int(length)
