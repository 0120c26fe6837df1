"""The judge of open answers: verdicts asked for, checked, stored and counted, against a real HTTP server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from servers import Response, completion, error, serving

from pathor1.benchmark import Judge
from pathor1.errors import RunError
from pathor1.evaluation.answers import Answer
from pathor1.evaluation.judge import Verdict, judge, judged
from pathor1.evaluation.judge_prompts import CORRECT_FORM, CRITERIA, PROMPT_VERSION, SCORES_FORM, SCORING, case, problem
from pathor1.evaluation.run import evaluate
from pathor1.samples import Sample, write

KEY = "sk-a-very-secret-key"
SCORES = dict(zip(CRITERIA, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1], strict=True))


def sample(number: int = 0) -> Sample:
    return Sample(
        id=f"q{number}",
        source="Quilt-VQA" if number % 2 else "PathVQA",
        task="open",
        question=f"What is shown in {number}?",
        answer="a naevus",
        meta={"context": "a slide of skin"},
    )


def answer(number: int = 0, text: str = "<think>It matures.</think><answer>naevus</answer>") -> Answer:
    return Answer(id=f"q{number}", number=0, text=text, finish="stop", tokens=9)


def settings(url: str, **values: Any) -> Judge:
    return Judge(**{"url": url, "model": "judge", "concurrency": 1, "retries": 0, **values})


def form(body: dict[str, Any]) -> str:
    return str(body["response_format"]["json_schema"]["name"])


def sound(body: dict[str, Any]) -> Response:
    return completion(json.dumps(SCORES if form(body) == "scores" else {"correct": 1}))


def verdict(respond: Callable[[dict[str, Any]], Response], folder: Path, **values: Any) -> tuple[Verdict, list[Any]]:
    with serving(respond) as server:
        found = judge(settings(server.url, **values), [(sample(), answer())], folder / "v", name="mine")
    return found["q0"], server.requests


def test_a_verdict_is_asked_for_by_a_strict_schema_at_temperature_0(tmp_path: Path) -> None:
    found, requests = verdict(sound, tmp_path, max_tokens=77)
    assert found.scores == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert (found.overall, found.correct, found.problem, found.attempts) == (5.5, 1, None, 2)
    assert (found.judge, found.prompt_version) == ("judge", PROMPT_VERSION)
    scores, correct = requests
    for body, expected in ((scores, SCORES_FORM), (correct, CORRECT_FORM)):
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0.0, 77, "judge")
        schema = body["response_format"]["json_schema"]
        assert schema["strict"] is True
        assert schema["schema"] == expected
        assert schema["schema"]["additionalProperties"] is False
        assert schema["schema"]["required"] == list(schema["schema"]["properties"])
    assert list(SCORES_FORM["properties"]) == list(CRITERIA)
    assert all(rule == {"type": "integer", "enum": list(range(1, 11))} for rule in SCORES_FORM["properties"].values())
    assert scores["messages"][0] == {"role": "system", "content": SCORING}
    told = scores["messages"][1]["content"]
    for part in ("What is shown in 0?", "Reference answer:\na naevus", "a slide of skin", "It matures."):
        assert part in told
    # Whether it is right hangs on what it commits to, and not on how it came there.
    assert "Response:\nnaevus" in correct["messages"][1]["content"]
    assert "It matures." not in correct["messages"][1]["content"]


def test_verdicts_are_stored_with_judge_and_prompt_version_and_not_asked_for_again(tmp_path: Path) -> None:
    asked = [(sample(number), answer(number)) for number in range(5)]
    with serving(sound) as server:
        first = judge(settings(server.url), asked[:3], tmp_path / "v", name="mine")
        assert len(server.requests) == 6
        assert judge(settings(server.url), asked[:3], tmp_path / "v", name="mine") == first
        assert len(server.requests) == 6
        assert judge(settings(server.url), asked, tmp_path / "v", name="mine").keys() == {f"q{n}" for n in range(5)}
        assert len(server.requests) == 10
        # Another answer to the same question is another case, and so is another judge.
        other = [(sample(0), answer(0, "naevus, I think"))]
        judge(settings(server.url), other, tmp_path / "v", name="mine")
        assert len(server.requests) == 12
        judge(settings(server.url, model="other"), asked[:1], tmp_path / "v", name="mine")
        assert len(server.requests) == 14
    rows = [row for path in tmp_path.glob("v-*/part-*") for row in pq.read_table(path).to_pylist()]
    assert {row["prompt_version"] for row in rows} == {PROMPT_VERSION}
    assert Counter(row["judge"] for row in rows) == {"judge": 6, "other": 1}
    assert all({name: row[name] for name in CRITERIA} == SCORES for row in rows)


def test_a_malformed_verdict_is_asked_for_again_with_what_is_wrong(tmp_path: Path) -> None:
    replies = iter(["I give it a ten", json.dumps({**SCORES, "Redundancy": 11}), json.dumps(SCORES), '{"correct": 0}'])
    found, requests = verdict(lambda _: completion(next(replies)), tmp_path)
    assert (found.problem, found.attempts, found.correct, found.overall) == (None, 4, 0, 5.5)
    assert [len(body["messages"]) for body in requests] == [2, 4, 4, 2]
    assert requests[1]["messages"][2:] == [
        {"role": "assistant", "content": "I give it a ten"},
        {"role": "user", "content": "That was no verdict: it is no JSON. Reply with the JSON object alone."},
    ]
    assert "Redundancy is no whole number from 1 to 10" in requests[2]["messages"][3]["content"]


def test_a_verdict_that_stays_malformed_is_unscored_and_never_zero(tmp_path: Path) -> None:
    def hopeless(body: dict[str, Any]) -> Response:
        return completion("no idea") if form(body) == "scores" else completion('{"correct": 1}')

    found, requests = verdict(hopeless, tmp_path)
    assert (found.scores, found.overall, found.correct) == (None, None, None)
    assert (found.problem, found.attempts) == ("malformed: it is no JSON", 4)
    assert len(requests) == 4
    (path,) = tmp_path.glob("v-*/part-*")
    (row,) = pq.read_table(path).to_pylist()
    assert row["overall"] is None
    assert row["correct"] is None
    assert [row[name] for name in CRITERIA] == [None] * 10
    assert json.loads(row["replies"]) == ["no idea", '{"correct": 1}']
    numbers = judged([found, replace(found, problem=None, scores=[2] * 10, overall=2.0, correct=1)], 3)
    assert numbers["unscored"]["value"] == pytest.approx(2 / 3), "one malformed, one not answered"
    assert (numbers["judged_accuracy"]["value"], numbers["judged_accuracy"]["n"]) == (1.0, 1)
    assert (numbers["overall_score"]["value"], numbers["overall_score"]["n"]) == (2.0, 1)
    assert numbers["Hallucination"]["value"] == 2.0


def test_a_refused_case_is_unscored(tmp_path: Path) -> None:
    found, requests = verdict(lambda _: error(400, "filtered"), tmp_path)
    assert found.problem is not None
    assert found.problem.startswith("refused: HTTP 400")
    assert len(requests) == 2


def test_what_the_server_did_not_answer_is_asked_for_the_next_time(tmp_path: Path) -> None:
    asked = [(sample(number), answer(number)) for number in range(6)]
    broken = {"What is shown in 2?"}

    def sometimes(body: dict[str, Any]) -> Response:
        told = body["messages"][1]["content"]
        return error(503, "busy") if any(question in told for question in broken) else sound(body)

    with serving(sometimes) as server:
        found = judge(settings(server.url), asked, tmp_path / "v", name="mine")
        assert found.keys() == {"q0", "q1", "q3", "q4", "q5"}
        broken.clear()
        server.requests.clear()
        assert len(judge(settings(server.url), asked, tmp_path / "v", name="mine")) == 6
        assert len(server.requests) == 2


def test_verdicts_that_came_before_the_server_has_gone_are_kept(tmp_path: Path) -> None:
    asked = [(sample(number), answer(number)) for number in range(12)]
    with serving(lambda body: sound(body) if len(server.requests) <= 6 else error(500, "gone")) as server:
        with pytest.raises(RunError, match="gone.*; 5 requests in a row were not answered"):
            judge(settings(server.url), asked, tmp_path / "v", name="mine")
        server.requests.clear()
        server.answer = sound
        assert len(judge(settings(server.url), asked, tmp_path / "v", name="mine")) == 12
        assert len(server.requests) == 2 * 9


def test_the_judges_key_reaches_no_file_and_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda _: completion(f"{KEY}?")) as server:
        judge(settings(server.url, key_variable="JUDGE_KEY"), [(sample(), answer())], tmp_path / "v", name="mine")
        assert server.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"
        server.answer = lambda _: error(401, f"{KEY} is wrong")
        with pytest.raises(RunError, match=r"\*\*\* is wrong.*set JUDGE_KEY") as wrong:
            judge(settings(server.url, key_variable="JUDGE_KEY"), [(sample(1), answer(1))], tmp_path / "v", name="mine")
    said = capsys.readouterr()
    assert KEY not in said.out + said.err + str(wrong.value)
    for path in tmp_path.glob("v-*/*"):
        text = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        assert KEY not in text


@pytest.mark.parametrize(
    ("reply", "wrong"),
    [
        ('{"correct": 1}', None),
        (' {"correct": 0}\n', None),
        ('{"correct": 2}', "correct is no whole number from 0 to 1"),
        ('{"correct": true}', "correct is no whole number from 0 to 1"),
        ('{"correct": 1.0}', "correct is no whole number from 0 to 1"),
        ('{"correct": "1"}', "correct is no whole number from 0 to 1"),
        ('{"correct": 1, "why": "so"}', "its keys are not correct"),
        ("{}", "its keys are not correct"),
        ("[1]", "it is no JSON object"),
        ("1", "it is no JSON object"),
        ('```json\n{"correct": 1}\n```', "it is no JSON"),
        ("", "it is no JSON"),
        ("[" * 100_000, "it is nested too deep"),
    ],
)
def test_a_verdict_is_what_the_schema_says_and_nothing_else(reply: str, wrong: str | None) -> None:
    numbers, found = problem(reply, CORRECT_FORM)
    assert found == wrong
    assert bool(numbers) == (wrong is None)


def test_a_case_leaves_out_what_is_not_known() -> None:
    assert case(replace(sample(), meta=None), "x") == (
        "Question:\nWhat is shown in 0?\n\nReference answer:\na naevus\n\nResponse:\nx"
    )


def test_open_questions_are_answered_by_one_server_and_judged_by_another(tmp_path: Path) -> None:
    from test_endpoint import recipe

    write([sample(number) for number in range(6)], tmp_path / "q.parquet")

    def verdicts(body: dict[str, Any]) -> Response:
        told = body["messages"][1]["content"]
        if "shown in 4" in told:
            return completion("?")
        right = "shown in 0" in told or "shown in 1" in told
        return completion(json.dumps(SCORES if form(body) == "scores" else {"correct": int(right)}))

    with serving(lambda _: completion("<think>a</think><answer>naevus</answer>")) as model, serving(verdicts) as judges:
        asked = recipe(
            tmp_path,
            model.url,
            data={"test": [str(tmp_path / "q.parquet")], "tasks": ["open"]},
            judge={"url": judges.url, "model": "judge", "retries": 0, "attempts": 2},
            models={"one": f"{model.url}#m", "two": f"{model.url}#m"},
        )
        results = evaluate(asked)
    assert results["judged_accuracy"]["one"]["PathVQA"]["value"] == 0.5
    assert results["judged_accuracy"]["one"]["PathVQA"]["n"] == 2, "the third is unscored"
    assert results["judged_accuracy"]["one"]["Quilt-VQA"]["value"] == pytest.approx(1 / 3)
    overall = results["overall"]
    assert overall["unscored"]["one"]["value"] == pytest.approx(1 / 6)
    assert (overall["judged_accuracy"]["one"]["value"], overall["overall_score"]["one"]["value"]) == (0.4, 5.5)
    assert overall["format"]["one"]["value"] == 1.0
    assert "accuracy" not in overall
    assert results["chance"] == {}
    assert overall["chance"] is None
    (pair,) = [pair for pair in results["pairs"] if pair["on"] == "overall"]
    assert (pair["model"], pair["against"], pair["n"], pair["p"], pair["significant"]) == ("two", "one", 5, 1.0, False)
    assert results["judge"] == {"model": "judge", "prompt_version": PROMPT_VERSION}
