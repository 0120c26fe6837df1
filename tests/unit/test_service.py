"""What a job takes along, what a cluster's answer means, and the ways to a cluster that lead nowhere."""

from __future__ import annotations

import argparse
import http.server
import json
import socket
import threading
from argparse import Namespace
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.pydantic_models import JobDetails

from pathor1.commands.jobs import COMMANDS, _to_submit
from pathor1.errors import RecipeError, RunError
from pathor1.recipe import load, to_toml
from pathor1.service import connection, jobs, package
from pathor1.service.jobs import Submitted
from pathor1.service.progress import progress

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "ray_jobs/recipes/demo_grpo.toml"


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in connection.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def clone(root: Path) -> Path:
    """A clone with everything beside the code that people have in one."""
    for name in (
        "pathor1/cli.py",
        "pathor1/data/stream.py",
        "pathor1/data/__pycache__/stream.pyc",
        "rewards/format.py",
        "ray_jobs/rl.py",
        "ray_jobs/recipes/mine.toml",
        "pyproject.toml",
        ".env",
        ".git/config",
        ".venv/bin/python",
        "data/train.parquet",
        "models/model.safetensors",
        "runs/demo/metrics.jsonl",
        "slides/1.svs",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_a_job_takes_the_code_and_its_recipe_along_and_nothing_else(tmp_path: Path) -> None:
    with package.packed(clone(tmp_path), "run.toml", "name = 'run'") as folder:
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert (folder / "run.toml").read_text() == "name = 'run'"
    assert files == {
        "pathor1/cli.py",
        "pathor1/data/stream.py",
        "rewards/format.py",
        "ray_jobs/rl.py",
        "ray_jobs/recipes/mine.toml",
        "run.toml",
    }
    assert not folder.exists()


def test_this_clone_is_what_runs() -> None:
    assert package.clone() == ROOT
    with package.packed(ROOT, "demo.toml", to_toml(load(DEMO))) as folder:
        assert load(folder / "demo.toml") == load(DEMO)
        assert (folder / "pathor1/report/page.html.jinja").is_file()


def test_code_that_is_too_large_is_one_line(tmp_path: Path) -> None:
    model = clone(tmp_path) / "ray_jobs/model.safetensors"
    with model.open("wb") as file:
        file.truncate(package.LARGEST)
    with (
        pytest.raises(
            RunError, match=f"hold 100 MiB and a job takes at most 100 MiB along; the largest file is {model}"
        ),
        package.packed(tmp_path, "run.toml", ""),
    ):
        pass


def test_where_nobody_listens() -> None:
    with pytest.raises(RunError, match=r"^http://127\.0\.0\.1:1: nobody listens there, or no Ray head; start one"):
        connection.connect("http://127.0.0.1:1")


def test_a_host_that_is_none_and_a_password_that_is_not_shown() -> None:
    with pytest.raises(RunError) as raised:
        connection.connect("http://me:hush@nowhere.invalid:8265/")
    assert str(raised.value).startswith("http://nowhere.invalid:8265: nobody listens there")


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "auto", "ray://head:10001", "http://", "http://head:port"])
def test_addresses_that_are_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match=f"^RAY_ADDRESS is '{address}'; jobs go to the head's dashboard: give --address"):
        connection.connect()


def test_an_address_that_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(RunError, match="^http://127.0.0.1:1: nobody"):
        connection.connect("http://127.0.0.1:1")
    with pytest.raises(RunError, match="^http://127.0.0.1:2: nobody"):
        connection.connect()


@pytest.fixture
def web_page() -> Iterator[str]:
    """A server that is not Ray's."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_is_not_rays(web_page: str) -> None:
    with pytest.raises(RunError, match="what answers there is no Ray dashboard"):
        connection.connect(web_page)


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWERED", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RunError, match="no answer within 0.2 s"):
        connection.connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


def details(**values: Any) -> JobDetails:
    given = {"type": "SUBMISSION", "submission_id": "run", "status": "FAILED", "entrypoint": "python", **values}
    return JobDetails(**given)


LOG = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\n"


@pytest.mark.parametrize(
    ("message", "code", "why"),
    [
        (f"{LOG}step 1\npathor1: /x: no such file\n\n(raylet) bye\n", 2, "/x: no such file"),
        (f"{LOG}Traceback\nValueError: no\n", 1, "exit code 1; the log ends with: ValueError: no"),
        ("runtime_env setup failed: no space\nTraceback\n  at x", None, "runtime_env setup failed: no space"),
        (None, None, "Ray gives no reason"),
    ],
)
def test_why_a_job_failed_is_one_line(message: str | None, code: int | None, why: str) -> None:
    assert jobs._job(details(message=message, driver_exit_code=code)).why == why


def test_a_job_as_ray_has_it() -> None:
    job = jobs._job(
        details(
            status="STOPPED",
            start_time=1_000_000,
            end_time=1_060_000,
            message="Job was intentionally stopped.",
            metadata={"run": "demo", "folder": "/lab/runs/demo"},
            runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "150"}},
        )
    )
    assert (job.run, job.state, job.why, job.folder, job.stop_wait) == ("demo", "STOPPED", "", "/lab/runs/demo", 150)
    assert job.ended
    assert job.since == datetime.fromtimestamp(1060).astimezone()
    other = jobs._job(details(status="RUNNING", start_time=1_000_000))
    assert (other.run, other.stop_wait, other.ended) == ("", 3, False)
    assert other.since == datetime.fromtimestamp(1000).astimezone()


def test_what_can_be_submitted() -> None:
    assert {"rl", "sft", "clip"} <= set(jobs.stages())
    assert not {"recipes", "__init__"} & set(jobs.stages())


def test_how_far_a_run_has_come(tmp_path: Path) -> None:
    assert progress(tmp_path) is None
    (tmp_path / "recipe.toml").write_text(to_toml(load(DEMO, ["rl.steps=12"])))
    before = progress(tmp_path)
    assert before is not None
    assert (before.step, before.steps, before.at, before.checkpoint) == (0, 12, None, None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    for step, whole in ((1, True), (2, False)):
        (tmp_path / f"checkpoints/step-{step:06d}").mkdir(parents=True)
        if whole:
            (tmp_path / f"checkpoints/step-{step:06d}/manifest.json").write_text(json.dumps({}))
    now = progress(tmp_path)
    assert now is not None
    assert (now.step, now.steps, now.checkpoint) == (2, 12, 1)
    assert now.at is not None


def to_submit(*words: str) -> tuple[Submitted, str]:
    parser = argparse.ArgumentParser()
    (command,) = (command for command in COMMANDS if command.name == "submit")
    command.add(parser)
    return _to_submit(parser.parse_args(words))


@pytest.mark.parametrize(
    ("recipe", "more", "stage"),
    [
        ("demo_grpo.toml", (), "rl"),
        ("demo_grpo.toml", ("--stage", "sft"), "sft"),
        ("stages/patho_r1_3b_cpt.toml", (), "cpt"),
        ("stages/patho_r1_3b_sft.toml", (), "sft"),
        ("clip/pathoclip_b.toml", (), "clip"),
        ("benchmarks/pathmmu_val.toml", (), "evaluate"),
        ("curation/textbooks.toml", ("--stage", "layout"), "curate layout"),
    ],
)
def test_a_recipe_says_what_runs(recipe: str, more: tuple[str, ...], stage: str) -> None:
    path = str(ROOT / "ray_jobs/recipes" / recipe)
    name = [] if recipe.startswith("benchmarks") else ["--set", "name=mine"]
    found, what = to_submit(path, *more, *name)
    assert what == stage
    assert stage.split(maxsplit=1)[0] in jobs.stages()
    assert not name or found.name == "mine"


@pytest.mark.parametrize(
    ("recipe", "stage", "line"),
    [
        ("curation/textbooks.toml", None, "is of curation; --stage says which of pages, layout, "),
        ("curation/textbooks.toml", "rl", "is of curation; --stage says which of pages, layout, "),
        ("demo_grpo.toml", "curate", "has no [books] table"),
        ("demo_grpo.toml", "clip", "has no [stage_1] table"),
        ("clip/pathoclip_b.toml", "rl", "whose only stage is clip"),
        ("benchmarks/pathmmu_val.toml", "rl", "whose only stage is evaluate"),
    ],
)
def test_a_stage_that_a_recipe_has_not(recipe: str, stage: str | None, line: str) -> None:
    path = str(ROOT / "ray_jobs/recipes" / recipe)
    with pytest.raises(RecipeError) as raised:
        to_submit(path, *(["--stage", stage] if stage else []))
    assert str(raised.value).startswith(f"{path}: ")
    assert line in str(raised.value)


def test_a_warm_start_is_submitted_by_its_stage_and_an_evaluation_of_clip_is_none() -> None:
    assert _to_submit(Namespace(recipe=str(DEMO), overrides=[], stage="sft"))[1] == "sft"
    path = str(ROOT / "ray_jobs/recipes/clip/evaluation.toml")
    with pytest.raises(RecipeError, match=r"is of an evaluation; `pathor1 clip zero-shot \S+evaluation.toml` makes it"):
        _to_submit(Namespace(recipe=path, overrides=[], stage=None))
