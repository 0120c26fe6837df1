"""Models behind servers: against a real HTTP server that errs in every way that servers do."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from formats import png
from servers import Response, completion, error, serving

from pathor1.benchmark import BenchmarkRecipe, Requests
from pathor1.errors import RunError
from pathor1.evaluation.endpoint import Client, RefusedError, UnansweredError, each
from pathor1.evaluation.run import evaluate
from pathor1.prompts import SYSTEM_PROMPTS
from pathor1.samples import Sample, write

KEY = "sk-a-very-secret-key"
CHAT = [{"role": "user", "content": "hello"}]


def chat(url: str, **requests: Any) -> str:
    client = Client(url, "m", Requests(**{"retries": 2, "timeout_seconds": 30.0, **requests}))
    return client.chat(CHAT, max_tokens=5, temperature=0.0).text


def in_turn(*responses: Response) -> Callable[[dict[str, Any]], Response]:
    left = list(responses)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_a_rate_limit_is_waited_for_as_long_as_the_server_says() -> None:
    busy = error(429, "slow down", Retry_After="0.8")
    with serving(in_turn(busy, error(503, "busy", Retry_After_Ms="10"), completion("hi"))) as server:
        started = time.monotonic()
        assert chat(server.url) == "hi"
        # The client's own first wait would be half a second at most; one that is longer is the server's.
        assert time.monotonic() - started > 0.8
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (error(500, "it broke", Retry_After_Ms="5"), "HTTP 500: .*it broke"),
        (error(429, "too many", Retry_After_Ms="5"), "HTTP 429: .*too many"),
    ],
)
def test_what_fails_again_and_again_is_unanswered(response: Response, said: str) -> None:
    with serving(in_turn(response)) as server:
        with pytest.raises(UnansweredError, match=said):
            chat(server.url, retries=3)
        assert len(server.requests) == 4, "asked again as often as the recipe says"


@pytest.mark.parametrize(
    "response",
    [
        Response(b"{half of a"),
        Response(b"<html>It works!</html>", headers={"Content-Type": "text/html"}),
        Response([1, 2]),
        Response({"choices": []}),
        Response({"choices": "none"}),
        Response({"choices": [{"index": 0, "finish_reason": "stop"}]}),
        Response({}),
    ],
)
def test_what_is_no_chat_completion_is_unanswered(response: Response) -> None:
    with serving(in_turn(response)) as server, pytest.raises(UnansweredError, match=r"127\.0\.0\.1"):
        chat(server.url, retries=0)


def test_a_server_that_is_silent_is_given_up() -> None:
    free = threading.Event()

    def silent(_: dict[str, Any]) -> Response:
        free.wait(60)
        return completion("late")

    with serving(silent) as server:
        with pytest.raises(UnansweredError, match="no answer in time"):
            chat(server.url, retries=0, timeout_seconds=0.2)
        free.set()


def test_nobody_there() -> None:
    with serving(in_turn(completion("x"))) as server:
        url = server.url
    with pytest.raises(UnansweredError, match="Connection error"):
        chat(url, retries=0)


@pytest.mark.parametrize(
    ("response", "hint"),
    [
        (error(401, "wrong key"), "HTTP 401: .*wrong key.*; set LAB_KEY, in the environment"),
        (error(403, "not yours"), "set LAB_KEY"),
        (error(404, "no model m"), "HTTP 404: .*no model m.*; check the URL and the model's name"),
    ],
)
def test_what_no_request_could_get_past_ends_it_at_once(response: Response, hint: str) -> None:
    with serving(in_turn(response)) as server:
        with pytest.raises(RunError, match=hint):
            chat(server.url, key_variable="LAB_KEY")
        assert len(server.requests) == 1


def test_a_request_that_is_refused_is_not_made_again() -> None:
    with serving(in_turn(error(400, "too long"))) as server:
        with pytest.raises(RefusedError, match="HTTP 400: .*too long"):
            chat(server.url)
        assert len(server.requests) == 1


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", KEY)

    def repeats(body: dict[str, Any]) -> Response:
        del body
        sent = server.requests[-1]["headers"]["authorization"]
        return completion(f"I was sent {sent}") if len(server.requests) == 1 else error(400, f"what is {sent}?")

    with serving(repeats) as server:
        assert chat(server.url, key_variable="LAB_KEY") == "I was sent Bearer ***"
        assert server.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"
        with pytest.raises(RefusedError) as refused:
            chat(server.url, key_variable="LAB_KEY")
        assert "Bearer ***" in str(refused.value)
        assert KEY not in str(refused.value)
        assert "authorization" in server.requests[-1]["headers"]


def test_the_only_model_is_found_and_of_several_one_has_to_be_named() -> None:
    with serving(in_turn(completion("x")), models=("one",)) as server:
        assert Client(server.url, None, Requests()).model == "one"
    with (
        serving(in_turn(completion("x")), models=("one", "two")) as server,
        pytest.raises(RunError, match="serves one, two; name one: .*#NAME"),
    ):
        Client(server.url, None, Requests())


def test_only_so_many_requests_are_under_way() -> None:
    def slow(_: dict[str, Any]) -> Response:
        time.sleep(0.02)
        return completion("x")

    with serving(slow) as server:
        client = Client(server.url, "m", Requests())
        numbers = each(range(30), lambda _: client.chat(CHAT, max_tokens=5, temperature=0.0).text, at_once=3)
        assert sorted(number for number, _ in numbers) == list(range(30))
        assert 2 <= server.most_at_once <= 3


def test_a_server_that_has_gone_ends_it_and_one_that_fails_at_times_does_not() -> None:
    def fails(number: int) -> int:
        if number % 5:
            raise UnansweredError("gone")
        return number

    assert len(list(each(range(50), fails, at_once=1))) == 50
    with pytest.raises(RunError, match="gone; 5 requests in a row were not answered"):
        list(each(range(1, 50), lambda _: fails(1), at_once=1))


# ---- a whole evaluation of a served model


def questions(path: Path, count: int = 10) -> None:
    write(
        [
            Sample(
                id=f"q{number}",
                source="lab" if number % 2 else "other",
                task="mcq",
                question=f"Question {number}?",
                options=("melanoma", "naevus", "lentigo"),
                answer="B",
                images=(png(number), png(number + 50)),
                meta={"organ": "skin"},
            )
            for number in range(count)
        ],
        path,
    )


def recipe(tmp_path: Path, url: str, **tables: Any) -> BenchmarkRecipe:
    values: dict[str, Any] = {
        "name": "served",
        "runs_dir": str(tmp_path / "runs"),
        "models": {"mine": f"{url}#m"},
        "data": {"test": [str(tmp_path / "q.parquet")], "max_pixels": 3136},
        "benchmark": {},
        "evaluation": {"checks": [], "max_new_tokens": 9},
        "endpoint": {"concurrency": 4, "retries": 0},
    }
    return BenchmarkRecipe.model_validate({**values, **tables})


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"][-1]["text"])


def test_a_served_model_is_asked_as_our_own_engine_is(tmp_path: Path) -> None:
    questions(tmp_path / "q.parquet", 1)
    with serving(in_turn(completion("<think>x</think><answer>B</answer>", tokens=5))) as server:
        results = evaluate(recipe(tmp_path, server.url))
        (body,) = server.requests
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 9, 0.0)
    system, user = body["messages"]
    assert system == {"role": "system", "content": SYSTEM_PROMPTS["chain_of_thought"]}
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    urls = [part["image_url"]["url"] for part in user["content"][:2]]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    assert urls[0] != urls[1]
    assert text_of(body) == "Question 0?\nA. melanoma\nB. naevus\nC. lentigo"
    assert results["accuracy"]["mine"]["other"]["value"] == 1.0
    (part,) = (tmp_path / "runs/served/eval/answers/mine").glob("greedy-*/part-*.parquet")
    assert pq.read_table(part).to_pylist() == [
        {"id": "q0", "number": 0, "text": "<think>x</think><answer>B</answer>", "finish": "stop", "tokens": 5}
    ]


def test_what_is_answered_is_not_asked_again_and_what_is_not_is(tmp_path: Path) -> None:
    questions(tmp_path / "q.parquet")
    broken = {"Question 3?", "Question 7?"}

    def answer(body: dict[str, Any]) -> Response:
        if text_of(body).splitlines()[0] in broken:
            return error(500, "it broke")
        return completion("<think>x</think><answer>B</answer>")

    with serving(answer) as server:
        asked = recipe(tmp_path, server.url)
        with pytest.raises(RunError, match="has not answered 2 of 10 questions; the same command asks for those alone"):
            evaluate(asked)
        assert not (tmp_path / "runs/served/eval/held_out.json").exists()
        broken.clear()
        server.requests.clear()
        results = evaluate(asked)
        assert {text_of(body).splitlines()[0] for body in server.requests} == {"Question 3?", "Question 7?"}
        assert results["overall"]["accuracy"]["mine"]["n"] == 10
        server.requests.clear()
        assert evaluate(asked) == results
        assert server.requests == []
        # Other settings are other answers.
        evaluate(asked.model_copy(update={"evaluation": asked.evaluation.model_copy(update={"max_new_tokens": 8})}))
        assert len(server.requests) == 10


def test_when_all_is_answered_nobody_is_asked(tmp_path: Path) -> None:
    questions(tmp_path / "q.parquet", 1)  # whose pictures nobody can exchange: it will never have been asked so
    evaluation = {"checks": ["shuffled_pictures"], "max_new_tokens": 9}
    with serving(in_turn(completion("<answer>B</answer>"))) as server:
        asked = recipe(tmp_path, server.url, models={"mine": server.url}, evaluation=evaluation)
        results = evaluate(asked)
        assert len(server.requests) == 1
    assert evaluate(asked) == results, "with the server gone"
    assert "accuracy_shuffled_pictures" not in results


def test_answers_that_came_before_a_server_has_gone_are_kept(tmp_path: Path) -> None:
    questions(tmp_path / "q.parquet", 20)
    seen: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> Response:
        seen[text_of(body)] += 1
        return completion("<answer>B</answer>") if len(seen) <= 8 else error(500, "gone")

    with serving(answer) as server:
        asked = recipe(tmp_path, server.url, endpoint={"concurrency": 1, "retries": 0})
        with pytest.raises(RunError, match="5 requests in a row"):
            evaluate(asked)
        server.answer = lambda body: (
            completion("<answer>B</answer>") if not seen.update([text_of(body)]) else error(500, "")
        )
        evaluate(asked)
    assert len(seen) == 20
    assert sum(count == 1 for count in seen.values()) == 15, "eight answered once, seven never tried before"


def test_a_refused_question_is_wrong_and_said_to_be_refused(tmp_path: Path) -> None:
    questions(tmp_path / "q.parquet", 4)

    def answer(body: dict[str, Any]) -> Response:
        return error(400, "blood") if "Question 1" in text_of(body) else completion("<answer>B</answer>")

    with serving(answer) as server:
        results = evaluate(recipe(tmp_path, server.url))
    overall = results["overall"]
    assert (overall["accuracy"]["mine"]["value"], overall["refused"]["mine"]["value"]) == (0.75, 0.25)
    assert overall["unparsed"]["mine"]["value"] == 0.25


def test_several_answers_are_sampled_and_checks_asked(tmp_path: Path) -> None:
    questions(tmp_path / "q.parquet", 6)
    turn: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> Response:
        if body["temperature"] == 0.7:
            turn[text_of(body)] += 1
            return completion(f"<answer>{'ABBA'[turn[text_of(body)] - 1]}</answer>")
        lines = text_of(body).splitlines()
        letter = next(line[0] for line in lines if line.endswith("naevus"))
        return completion(f"<answer>{letter}</answer>" if len(body["messages"][-1]["content"]) > 1 else "who knows")

    with serving(answer) as server:
        checks = ["removed_pictures", "shuffled_pictures", "shuffled_options"]
        evaluation = {"checks": checks, "sampled_answers": 4, "temperature": 0.7, "max_new_tokens": 9}
        results = evaluate(recipe(tmp_path, server.url, evaluation=evaluation))
        assert len(server.requests) == 6 * (1 + 4 + 3)
    found = {measure: of["mine"] for measure, of in results["overall"].items() if isinstance(of, dict)}
    assert {measure: share["value"] for measure, share in found.items() if share["n"] == 6} == {
        "accuracy": 1.0,
        "accuracy_lenient": 1.0,
        "unparsed": 0.0,
        "unparsed_lenient": 0.0,
        "format": 0.0,
        "truncated": 0.0,
        "refused": 0.0,
        "accuracy_sampled": 0.5,
        "majority@4": 0.0,  # two of each: the first said counts
        "pass@2": pytest.approx(1 - 1 / 6),
        "pass@4": 1.0,
        "accuracy_removed_pictures": 0.0,
        "accuracy_shuffled_pictures": 1.0,
        "accuracy_shuffled_options": 1.0,
        "same_answer": 1.0,
    }
    assert results["chance"] == {"lab": pytest.approx(1 / 3), "other": pytest.approx(1 / 3)}
    assert json.loads((tmp_path / "runs/served/eval/held_out.json").read_text()) == json.loads(json.dumps(results))


def test_no_file_holds_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    questions(tmp_path / "q.parquet", 2)
    with serving(lambda _: completion(f"your key is {KEY}")) as server:
        evaluate(recipe(tmp_path, server.url))
        assert server.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            text = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_text()
            assert KEY not in str(text)
