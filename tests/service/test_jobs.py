"""RL as a Ray job, by the commands of Ray alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from clusters import Head
from processes import wait_until
from small import Small

# How the processes of a run are called: its driver, the actor, vLLM, the agent, the queue, and what these start.
PARTS = ("ray_jobs.rl", "WorkerDict", "VLLM::EngineCore", "QuestionGroupWorker", "TransferQueueController")
PARTS += ("vLLMHttpServer", "SimpleStorageUnit", "LoadBalancer", "ReadSamples")
STARTED = 600  # seconds that a run may take to its first step on two busy cores
pytestmark = pytest.mark.timeout(1800)


def entrypoint(small: Small, runs: Path, *overrides: str) -> str:
    """The demonstration's recipe, with small files in the place of its own."""
    settings = [
        "name=job",
        f"runs_dir={runs}",
        f"model.path={small.model}",
        f"data.train={json.dumps([str(small.train)])}",
        "rl.prompts_per_step=8",
        "rl.group_size=2",
        *overrides,
    ]
    options = " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
    return f"python -m ray_jobs.rl ray_jobs/recipes/demo_grpo.toml {options}"


def status(head: Head, job: str) -> str:
    """What Ray says of a job, on whichever of its two streams."""
    done = head.run(f"ray job status {job}", seconds=60)
    return done.stdout + done.stderr


def test_a_run_that_cannot_start_ends_as_failed_and_says_why(head: Head, small: Small, tmp_path: Path) -> None:
    bad = entrypoint(small, tmp_path, "data.train=['/nowhere.parquet']")
    done = head.run(f"ray job submit --submission-id bad --working-dir . -- {bad}", seconds=120)
    assert done.returncode == 1
    assert "pathor1: /nowhere.parquet: no such file" in done.stdout
    assert "Traceback" not in done.stdout
    assert "Job 'bad' failed" in status(head, "bad")
    assert not (tmp_path / "job").exists(), "nothing half-made is left"


def test_a_stopped_run_leaves_no_process_behind(head: Head, small: Small, tmp_path: Path) -> None:
    command = entrypoint(small, tmp_path, "rl.steps=500")
    head.run(f"ray job submit --submission-id long --no-wait --working-dir . -- {command}", seconds=60)
    metrics = tmp_path / "job/metrics.jsonl"
    wait_until(lambda: metrics.is_file() and bool(metrics.read_text()), STARTED, "a first step")

    def of_the_run() -> list[str]:
        return [line for line in head.processes() if any(part in line for part in PARTS)]

    # A process that does something just now bears the name of that: it is looked for until it is seen.
    for part in PARTS[:5]:
        wait_until(lambda part=part: any(part in line for line in of_the_run()), 60, f"{part} among the processes")
    assert head.run("ray job stop long", seconds=120).returncode == 0
    assert "Job 'long' was stopped" in status(head, "long")
    wait_until(lambda: not of_the_run(), 60, "no process of the run left")


def test_the_demos_own_head_works_beside_another_cluster(head: Head) -> None:
    code = "from pathor1.demo import submit; submit(['echo', 'step one'], name='x')"
    done = head.run(f"python -c {shlex.quote(code)}", seconds=180)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "   step one" in done.stdout.splitlines()
    assert head.run("ray job list", seconds=60).returncode == 0, "the other cluster is still there"
    bad = "from pathor1.demo import submit; submit(['false'], name='x')"
    done = head.run(f"python -c {shlex.quote(bad)}", seconds=180)
    assert done.returncode != 0
    assert "ended as FAILED" in done.stderr
