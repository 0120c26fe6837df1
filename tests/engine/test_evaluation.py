"""Evaluation by real engines: in one process, on Ray Data, and behind vLLM's own server, which also judges."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import running, wait_until
from small import Small

from pathor1.curation.drafts import DRAFT_TASKS
from pathor1.curation.quality import Limits, Written, findings
from pathor1.curation.reasoning_prompts import prompt
from pathor1.curation.recipe_samples import Reason
from pathor1.curation.writing import Requests, write_replies
from pathor1.evaluation.answers import Parts
from pathor1.evaluation.judge_prompts import CRITERIA, PROMPT_VERSION
from pathor1.samples import LETTERS, read, write

TIME = 400
pytestmark = pytest.mark.timeout(1200)
QUESTIONS = 96
RECIPE = """
name = "bench"
[data]
test = [{test}]
system_prompt = "none"
max_prompt_tokens = 96
max_pixels = 3136
[benchmark]
columns = "subfield"
[evaluation]
max_new_tokens = 12
samples = {questions}
checks = ["shuffled_pictures"]
[rollout]
max_sequences = 4
max_batched_tokens = 2048
"""


@pytest.fixture(scope="module")
def bench(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a benchmark's recipe; its runs go there too."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "bench.toml").write_text(RECIPE.format(test=json.dumps(str(small.train)), questions=QUESTIONS))
    return folder


def command(folder: Path, recipe: str, *arguments: str) -> list[str]:
    return ["pathor1.cli", "evaluate", str(folder / recipe), "--set", f"runs_dir={folder}", *arguments]


def parts(folder: Path, kind: str) -> dict[Path, list[dict[str, Any]]]:
    found = (folder / "bench/eval/answers").glob(f"small/{kind}-*/part-*.parquet")
    return {path: pq.read_table(path).to_pylist() for path in found}


@pytest.fixture(scope="module")
def answered(bench: Path, small: Small) -> Path:
    """Killed after its first answers, in one process; gone on with by two engines on Ray."""
    model = ["--model", f"small={small.model}"]
    with running(command(bench, "bench.toml", *model), bench / "log") as process:
        wait_until(lambda: bool(parts(bench, "greedy")) or process.process.poll() is not None, TIME, "answers")
        process.kill()
    before = parts(bench, "greedy")
    assert 0 < sum(map(len, before.values())) < QUESTIONS, "answers are written as they come"
    with running(command(bench, "bench.toml", *model, "--set", "rollout.engines=2"), bench / "log2") as process:
        assert process.finish(TIME) == 0, process.output()[-3000:]
    after = parts(bench, "greedy")
    assert {path: after[path] for path in before} == before, "what was answered stays"
    return bench


def test_an_evaluation_that_was_killed_goes_on_and_asks_nothing_twice(answered: Path, small: Small) -> None:
    ids = [sample.id for sample in read(small.train, columns=["id"])][:QUESTIONS]
    for kind in ("greedy", "shuffled_pictures"):
        rows = [row for of_part in parts(answered, kind).values() for row in of_part]
        assert sorted(row["id"] for row in rows) == sorted(ids)
        assert {row["finish"] for row in rows} <= {"stop", "length"}
        assert all(0 < row["tokens"] <= 12 for row in rows)
    results = json.loads((answered / "bench/eval/results.json").read_text())
    assert results["overall"]["accuracy"]["small"]["n"] == QUESTIONS
    assert sum(results["columns"].values()) == QUESTIONS
    text = (answered / "bench/eval/results.txt").read_text()
    assert text.splitlines()[2].split() == [*sorted(results["columns"]), "Overall"]
    assert (answered / "log2").read_text().endswith(text)


def test_when_all_is_answered_no_engine_is_started(answered: Path, small: Small) -> None:
    arguments = command(answered, "bench.toml", "--model", f"small={small.model}", "--set", "evaluation.by=['level']")
    with running(arguments, answered / "log3") as process:
        assert process.finish(60) == 0, process.output()[-3000:]
        assert "answered in" not in process.output()
    assert json.loads((answered / "bench/eval/results.json").read_text())["by"].keys() == {"level"}


@pytest.fixture(scope="module")
def server(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` with the small model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["vllm.entrypoints.cli.main", "serve", str(small.model), "--served-model-name", "small"]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    arguments += ["--max-model-len", "2048", "--max-num-batched-tokens", "2048", "--max-num-seqs", "16"]
    # An untrained model would write spaces without end, which JSON allows.
    arguments += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    url = f"http://127.0.0.1:{port}/v1"

    def ready() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{url}/models", timeout=5):
            return True
        return process.process.poll() is not None

    with running(arguments, tmp_path_factory.mktemp("server") / "log", environment) as process:
        wait_until(ready, TIME, "vLLM's server")
        assert process.process.poll() is None, process.output()[-3000:]
        yield url


def test_a_served_model_answers_as_it_does_in_our_engine(answered: Path, server: str) -> None:
    arguments = command(answered, "bench.toml", "--model", f"served={server}", "--set", "evaluation.checks=[]")
    with running(arguments, answered / "log4") as process:
        assert process.finish(TIME) == 0, process.output()[-3000:]
    paths = (answered / "bench/eval/answers/served").glob("greedy-*/part-*.parquet")
    served = {row["id"]: row["text"] for path in paths for row in pq.read_table(path).to_pylist()}
    ours = {row["id"]: row["text"] for rows in parts(answered, "greedy").values() for row in rows}
    assert served.keys() == ours.keys()
    # The same prompt, pictures and weights; rounding alone, which depends on what else is in a batch, may differ.
    same = sum(served[id_] == ours[id_] for id_ in ours)
    assert same >= 0.9 * QUESTIONS


def test_a_served_model_judges_by_the_schema(answered: Path, small: Small, server: str) -> None:
    asked = [
        replace(one, task="open", options=None, answer=(one.options or ())[LETTERS.index(one.answer)])
        for one in list(read(small.train))[:4]
    ]
    write(asked, answered / "open.parquet")
    (answered / "open.toml").write_text(
        f"""
name = "open"
[data]
test = [{json.dumps(str(answered / "open.parquet"))}]
tasks = ["open"]
max_pixels = 3136
[benchmark]
[evaluation]
max_new_tokens = 12
checks = []
[judge]
url = "{server}"
model = "small"
max_tokens = 400
"""
    )
    arguments = command(answered, "open.toml", "--model", f"served={server}#small")
    with running(arguments, answered / "log5") as process:
        assert process.finish(TIME) == 0, process.output()[-3000:]
    paths = (answered / "open/eval/verdicts/served").glob("greedy-*/part-*.parquet")
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 4
    # How it judges is chance; that every verdict has the form that was asked for is not.
    for row in rows:
        assert (row["problem"], row["judge"], row["prompt_version"]) == (None, "small", PROMPT_VERSION)
        assert all(1 <= row[name] <= 10 for name in CRITERIA)
        assert row["overall"] == pytest.approx(sum(row[name] for name in CRITERIA) / 10)
        assert row["correct"] in (0, 1)
    overall = json.loads((answered / "open/eval/results.json").read_text())["overall"]
    assert overall["unscored"]["served"]["value"] == 0.0
    assert overall["judged_accuracy"]["served"]["n"] == 4


def test_a_served_model_writes_samples_for_curation(server: str, tmp_path: Path) -> None:
    # Here, as the server takes half a minute to start.
    told = {
        f"{subfield}#{task}": prompt(subfield, "easy", task, caption="A seminoma.")
        for subfield in ("ihc", "fish")
        for task in DRAFT_TASKS
    }
    told["long"] = prompt("ihc", "hard", "description", caption="Long. " * 600)
    schema = pa.schema([("key", pa.string()), ("id", pa.string()), ("prompt", pa.string())])
    rows = ({"key": id_, "id": id_, "prompt": text} for id_, text in told.items())
    requests = Requests.write(tmp_path / "requests.parquet", rows, schema)
    store = Parts(tmp_path / "replies", requests.schema, {})
    settings = Reason(url=server, model="small", max_tokens=24, temperature=0.0, output_price=1e6)
    cost = write_replies(settings, requests, store, name="t")
    found = {row["id"]: row for row in store.read()}
    assert found.keys() == told.keys()
    long = found.pop("long")
    assert long["finish"].startswith("refused: HTTP 400: "), "longer than the model takes"
    assert (long["reply"], long["tokens_out"]) == ("", 0)
    assert {row["finish"] for row in found.values()} <= {"stop", "length"}
    assert all(row["tokens_in"] > 1000 and 0 < row["tokens_out"] <= 24 for row in found.values())
    assert cost.money == sum(row["tokens_out"] for row in found.values())
    again = {"task": "description", "caption": "A seminoma."}
    draft, problems = findings(Written(reply=found["ihc#description"]["reply"], **again), Limits())
    assert draft is None, "an untrained model writes no samples"
    assert "tags" in {each.rule for each in problems}
