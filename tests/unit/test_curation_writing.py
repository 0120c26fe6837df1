"""Having a model write: against a real HTTP server that errs in every way that servers do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import Response, completion, error, serving

from pathor1.curation.limits import Cost, Rate
from pathor1.curation.recipe_samples import Reason
from pathor1.curation.writing import Requests, write_replies
from pathor1.errors import RunError
from pathor1.evaluation.answers import Parts

KEY = "sk-a-very-secret-key"
SCHEMA = pa.schema([("key", pa.string()), ("id", pa.string()), ("about", pa.string()), ("prompt", pa.string())])


def settings(url: str, **values: Any) -> Reason:
    return Reason(**{"url": url, "model": "m", "retries": 0, "concurrency": 4, "expected_tokens": 7, **values})


def requests(folder: Path, count: int = 12) -> Requests:
    rows = ({"key": f"k{n}", "id": f"r{n}", "about": f"a{n}", "prompt": f"Write on {n}."} for n in range(count))
    return Requests.write(folder / "requests.parquet", iter(rows), SCHEMA)


def store(folder: Path, asked: Requests) -> Parts:
    return Parts(folder / "replies", asked.schema, {"model": "m"})


def said(parts: Parts) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["reply"], row["finish"]) for row in parts.read()}


def sound(body: dict[str, Any]) -> Response:
    return completion(body["messages"][0]["content"].replace("Write on", "This is"))


def test_all_are_asked_and_kept_with_what_is_known_of_them(tmp_path: Path) -> None:
    asked = requests(tmp_path, 150)
    parts = store(tmp_path, asked)
    with serving(sound) as server:
        cost = write_replies(settings(server.url, temperature=0.3, max_tokens=99), asked, parts, name="t")
        assert len(server.requests) == 150
        assert server.most_at_once <= 4
        assert all(
            (body["temperature"], body["max_tokens"], body["model"]) == (0.3, 99, "m") for body in server.requests
        )
        assert {type(body["messages"][0]["content"]) for body in server.requests} == {str}
        server.requests.clear()
        assert write_replies(settings(server.url), asked, parts, name="t").replies == 150
        assert not server.requests, "nothing is asked twice"
    rows = {row["id"]: row for row in parts.read()}
    assert len(rows) == 150
    assert rows["r17"] == {
        "key": "k17",
        "id": "r17",
        "about": "a17",
        "reply": "This is 17.",
        "finish": "stop",
        "tokens_in": 1,
        "tokens_out": 7,
    }
    assert (cost.tokens_in, cost.tokens_out) == (150, 1050)


def test_what_was_written_before_the_server_has_gone_is_kept_and_the_rest_is_asked_for(tmp_path: Path) -> None:
    asked = requests(tmp_path)
    parts = store(tmp_path, asked)
    with serving(lambda body: sound(body) if len(server.requests) <= 5 else error(500, "gone")) as server:
        with pytest.raises(RunError, match="gone.*5 requests in a row were not answered"):
            write_replies(settings(server.url, concurrency=1), asked, parts, name="t")
        assert len(said(parts)) == 5
        server.requests.clear()
        server.answer = sound
        write_replies(settings(server.url), asked, parts, name="t")
        assert len(server.requests) == 7
    assert said(parts) == {f"r{n}": (f"This is {n}.", "stop") for n in range(12)}


def test_one_that_is_not_answered_is_told_of_and_one_that_is_refused_is_kept_so(tmp_path: Path) -> None:
    asked = requests(tmp_path)
    parts = store(tmp_path, asked)
    wrong = {"Write on 3.": error(503, "busy"), "Write on 8.": error(400, "filtered"), "Write on 9.": Response(b"{")}

    with serving(lambda body: wrong.get(body["messages"][0]["content"]) or sound(body)) as server:
        with pytest.raises(RunError, match=r"has not answered 2 of 12 requests; the same command asks for those alone"):
            write_replies(settings(server.url), asked, parts, name="t")
        found = said(parts)
        assert found.keys() == {f"r{n}" for n in range(12)} - {"r3", "r9"}
        assert found["r8"][0] == ""
        assert found["r8"][1].startswith("refused: HTTP 400: ")
        wrong.clear()
        server.requests.clear()
        write_replies(settings(server.url), asked, parts, name="t")
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "what"),
    [(401, r"\*\*\* is wrong.*set WRITER_KEY"), (404, "check the URL and the model's name")],
)
def test_a_wrong_key_or_model_ends_at_once_and_the_key_is_nowhere(
    status: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WRITER_KEY", KEY)
    asked = requests(tmp_path)
    parts = store(tmp_path, asked)
    with serving(lambda body: completion(f"{KEY}!")) as server:
        first = Requests.write(
            tmp_path / "one.parquet", iter([{"key": "x", "id": "x", "about": "", "prompt": "Write."}]), SCHEMA
        )
        write_replies(settings(server.url, key_variable="WRITER_KEY"), first, parts, name="t")
        assert server.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"
        server.answer = lambda body: error(status, f"{KEY} is wrong")
        with pytest.raises(RunError, match=what):
            write_replies(settings(server.url, key_variable="WRITER_KEY"), asked, parts, name="t")
        assert len(server.requests) <= 1 + 5, "not all of them are tried"
    told = capsys.readouterr()
    assert KEY not in told.out + told.err
    for path in parts.folder.glob("part-*"):
        assert KEY not in str(pq.read_table(path).to_pylist())


def test_a_budget_that_is_expected_to_be_too_small_is_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = requests(tmp_path)
    prices = {"input_price": 0.5, "output_price": 1e6, "currency": "CNY"}  # a unit of money for each token out
    with serving(sound) as server:
        with pytest.raises(RunError, match=r"expected to cost 84\.00 CNY, and reason\.budget is 80\.00"):
            write_replies(settings(server.url, budget=80.0, **prices), asked, store(tmp_path, asked), name="t")
        assert not server.requests
    assert "12 requests, some 34 tokens in, expected to cost 84.00 CNY" in capsys.readouterr().out


def test_a_budget_that_is_spent_ends_the_stage_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    asked = requests(tmp_path, 200)
    parts = store(tmp_path, asked)
    prices = {"output_price": 1e6, "expected_tokens": 1}  # the guess is too low by seven
    with serving(sound) as server:
        with pytest.raises(RunError, match=r"have been spent, and reason\.budget is 201\.00; what was written is kept"):
            write_replies(settings(server.url, budget=201.0, **prices), asked, parts, name="t")
        assert 29 <= len(said(parts)) <= len(server.requests) <= 128 + 4
        spent = 7 * len(said(parts))
        server.requests.clear()
        # By what the replies so far have cost, the rest is dearer than the guess said.
        with pytest.raises(RunError, match=r"expected to cost 1400\.00"):
            write_replies(settings(server.url, budget=1000.0, **prices), asked, parts, name="t")
        assert not server.requests
        cost = write_replies(settings(server.url, budget=1401.0, **prices), asked, parts, name="t")
    assert cost.money == pytest.approx(1400.0)
    assert spent < 1400


def test_the_server_is_asked_no_faster_than_it_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathor1.curation.limits.MINUTE", 0.5)
    asked = requests(tmp_path)
    with serving(sound) as server:
        started = time.monotonic()
        limits = {"tokens_per_minute": 60, "expected_tokens": 1, "concurrency": 1}
        write_replies(settings(server.url, **limits), asked, store(tmp_path, asked), name="t")
        # The last is asked for when the 11 before it, of 8 tokens each, are paid: six at once, and 120 a second.
        assert time.monotonic() - started > (11 * 8 - 6) / 120


def test_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pathor1.curation.limits.time.monotonic", lambda: now[0])
    monkeypatch.setattr("pathor1.curation.limits.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    bucket = Rate(60)  # one a second, six at once
    for _ in range(6):
        bucket.take()
    assert now[0] == 100.0
    for _ in range(4):
        bucket.take()
    assert now[0] == pytest.approx(103.0, abs=1e-3)  # the seventh is lent
    bucket.correct(10)  # one has cost ten more than was thought
    bucket.take()
    assert now[0] == pytest.approx(114.0, abs=1e-3)
    bucket.correct(-100)  # what is given back is no more than a burst
    now[0] += 1
    started = now[0]
    for _ in range(6):
        bucket.take()
    assert now[0] == started
    bucket.take(2)
    assert now[0] == pytest.approx(started, abs=1e-3)
    bucket.take()
    assert now[0] == pytest.approx(started + 2, abs=1e-3)
    unlimited = Rate(None)
    for _ in range(1000):
        unlimited.take(1e9)
    assert now[0] == pytest.approx(started + 2, abs=1e-3)


def test_cost_is_by_prices_and_then_by_replies() -> None:
    cost = Cost(settings("http://h/v1", input_price=2.0, output_price=8.0, expected_tokens=1000))
    assert cost.expected(10, 4_000_000) == pytest.approx(2.0 + 0.08)
    cost.add(tokens_in=1_000_000, tokens_out=500_000)
    assert cost.money == pytest.approx(6.0)
    assert cost.expected(3, 0) == pytest.approx(18.0)
    assert str(cost) == "1,000,000 tokens in, 500,000 out, 6.00 USD"


def test_requests_are_read_a_row_group_at_a_time(tmp_path: Path) -> None:
    taken: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for n in range(1000):
            taken.append(n)
            yield {"key": f"r{n}", "id": f"r{n}", "about": "", "prompt": "p"}

    asked = Requests.write(tmp_path / "r.parquet", rows(), SCHEMA)
    assert asked.groups() == 8
    first = next(asked.waiting(frozenset({"r0"})))
    assert first["id"] == "r1"
    assert [row["id"] for row in asked.group(7, frozenset())][-1] == "r999"
