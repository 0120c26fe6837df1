"""RL as a Ray job, by our commands and by Ray's own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pyarrow.parquet as pq
import pytest
from clusters import REPOSITORY, Head
from conftest import SECRETS
from monitoring import ALERTS, OF_GPUS, metrics, needs_prometheus, queries
from processes import wait_until
from small import Small

# How the processes of a run are called: its driver, the actor, vLLM, the agent, the queue, and what these start.
PARTS = ("ray_jobs.rl", "WorkerDict", "VLLM::EngineCore", "QuestionGroupWorker", "TransferQueueController")
PARTS += ("QuestionGroupServer", "SimpleStorageUnit", "LoadBalancer", "ReadSamples")
STARTED = 600  # seconds that a run may take to its first step on two busy cores
RECIPE = "ray_jobs/recipes/demo_grpo.toml"
DASHBOARD, PROMETHEUS = "http://127.0.0.1:8265", "http://127.0.0.1:9090"
pytestmark = pytest.mark.timeout(1800)


def options(small: Small, runs: Path | str, *overrides: str) -> str:
    """The demonstration's recipe is given small files in the place of its own."""
    settings = [
        "name=job",
        f"runs_dir={runs}",
        f"model.path={small.model}",
        f"data.train={json.dumps([str(small.train)])}",
        "rl.prompts_per_step=8",
        "rl.group_size=2",
        *overrides,
    ]
    return " ".join(f"--set {shlex.quote(setting)}" for setting in settings)


def status(head: Head, job: str) -> str:
    """What Ray says of a job, on whichever of its two streams."""
    done = head.run(f"ray job status {job}", seconds=60)
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Finished:
    """A run of one step that `pathor1 submit` submitted. command_lines: of all that ran beside it."""

    storage: Path
    submitted: subprocess.CompletedProcess[str]
    followed: subprocess.CompletedProcess[str]
    command_lines: set[str]


@pytest.fixture(scope="module")
def finished(head: Head, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    storage = tmp_path_factory.mktemp("storage")
    recipe = storage / "lab.toml"  # not in the clone
    recipe.write_text((REPOSITORY / RECIPE).read_text(encoding="utf-8"))
    own = ['trackers=["wandb"]', 'cluster.secrets=["LAB_PASSWORD", "WANDB_API_KEY"]', "cluster.stop_grace=45.5"]
    submitted = head.run(
        f"pathor1 submit {recipe} {options(small, 'runs', 'rl.steps=1', *own)}",
        seconds=120,
        variables={"PATHOR1_STORAGE": str(storage)},
    )
    assert submitted.returncode == 0, submitted.stderr
    seen: set[str] = set()
    with ThreadPoolExecutor(1) as beside:
        following = beside.submit(head.run, "pathor1 logs --follow job", seconds=STARTED)
        while not following.done():
            seen.update(head.processes())
            time.sleep(0.5)
    return Finished(storage, submitted, following.result(), seen)


def test_a_submitted_run_streams_its_log_and_ends_as_succeeded(finished: Finished) -> None:
    assert finished.submitted.stdout == "job-1\n"
    done = finished.followed
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "step 1/1" in done.stdout
    assert any("pathor1/fork_launcher.py" in line for line in finished.command_lines), "libraries are imported once"
    assert done.stderr == "job-1: SUCCEEDED\n"
    assert (finished.storage / "runs/job/checkpoints/step-000001/manifest.json").is_file()


def test_the_status_of_a_run_says_how_far_it_came_and_where(finished: Finished, head: Head) -> None:
    page = head.run("pathor1 status job", seconds=60).stdout
    assert re.match(r"job-1: SUCCEEDED since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", page), page
    for name, text in {
        "run": "job",
        "stage": "rl",
        "recipe": finished.storage / "lab.toml",
        "folder": finished.storage / "runs/job",
        "step": "1/1, ",
        "checkpoint": "of step 1\n",
    }.items():
        assert f"\n  {name:<11} {text}" in page


def test_a_job_carries_its_settings_and_no_others(finished: Finished, head: Head) -> None:
    code = "from ray.job_submission import JobSubmissionClient as C; import json; info = C().get_job_info('job-1'); "
    code += "print(json.dumps([info.runtime_env, info.metadata]))"
    environment, metadata = json.loads(head.run(f"python -c {shlex.quote(code)}", seconds=60).stdout.splitlines()[-1])
    # A variable that verl gives its own processes would be refused by Ray as one that comes twice.
    assert environment["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "76", "PATHOR1_STORAGE": str(finished.storage)}
    assert set(metadata) - {"git"} == {"run", "stage", "recipe", "folder", "user", "pathor1"}


def contents(path: Path) -> Iterator[bytes]:
    """What all files of a folder hold; Parquet, which is compressed, as it is read."""
    for file in path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            yield str(pq.read_table(file).to_pylist()).encode() if file.suffix == ".parquet" else file.read_bytes()


def test_no_secret_is_in_anything_that_a_run_leaves_or_shows(finished: Finished, head: Head) -> None:
    run = finished.storage / "runs/job"
    commands = ("pathor1 status job", "pathor1 logs job", "ray job list", f"pathor1 report {run}")
    asked = [head.run(command, seconds=60) for command in commands]
    shown = [done.stdout + done.stderr for done in [finished.submitted, finished.followed, *asked]]
    written = list(contents(finished.storage)) + list(contents(head.folder))
    assert any(b"step 1/1" in content for content in written), "Ray's logs are among them"
    assert any(path.suffix == ".wandb" for path in head.folder.rglob("*")), "and the tracker's"
    patterns = (
        "ledger/*.parquet",
        "metrics.jsonl",
        "recipe.toml",
        "*.html",
        "tensorboard/*",
        "checkpoints/*/actor/*.pt",
    )
    assert all(any(run.glob(pattern)) for pattern in patterns)
    assert any("WorkerDict" in line for line in finished.command_lines)
    for name, secret in SECRETS.items():
        assert not any(secret in text for text in [*shown, *finished.command_lines]), name
        assert not any(secret.encode() in content for content in written), name


def test_a_run_that_cannot_start_ends_as_failed_and_says_why(head: Head, small: Small, tmp_path: Path) -> None:
    bad = options(small, tmp_path, "name=bad", "data.train=['/nowhere.parquet']")
    entrypoint = f"python -m ray_jobs.rl {RECIPE} {bad}"
    done = head.run(f"ray job submit --submission-id bad --working-dir . -- {entrypoint}", seconds=120)
    assert done.returncode == 1
    why = "/nowhere.parquet: no such file"
    assert f"pathor1: {why}" in done.stdout
    assert "Traceback" not in done.stdout
    assert "Job 'bad' failed" in status(head, "bad")
    assert head.run(f"pathor1 submit {RECIPE} {bad}", seconds=60).stdout == "bad-1\n"
    followed = head.run("pathor1 logs --follow bad-1", seconds=120)
    assert followed.returncode == 1
    assert followed.stderr.startswith(f"bad-1: FAILED: {why}")
    assert re.match(rf"bad-1: FAILED since [0-9 :-]+: {why}", head.run("pathor1 status bad-1", seconds=60).stdout)
    rows = head.run("pathor1 status", seconds=60).stdout.splitlines()
    assert rows[0].split() == ["ID", "RUN", "STATE", "SINCE", "WHY"]
    for row in rows[1:]:
        if row.startswith("bad"):
            assert re.match(rf"bad(-1 +bad| +-) +FAILED +[0-9 :-]+ {why}", row)
    assert len([row for row in rows if row.startswith("bad")]) == 2
    assert not (tmp_path / "bad").exists(), "nothing half-made is left"


# A command as on a machine with another release of Ray.
OTHER_RAY = "import sys, ray; ray.__version__ = '2.58.1'; from pathor1.cli import main; sys.exit(main(sys.argv[1:]))"
AS_OTHER = f"python -c {shlex.quote(OTHER_RAY)}"
HERE = "http://127.0.0.1:8265"


@pytest.mark.parametrize(
    ("command", "variables", "line"),
    [
        ("pathor1 stop nobody", {}, f"nobody: no such job and no such run at {HERE}; the last jobs there: "),
        ("pathor1 status", {"RAY_AUTH_TOKEN": "0" * 40}, f"{HERE}: the cluster does not take this token"),
        (
            "pathor1 status",
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/none"},
            f"{HERE}: RAY_AUTH_TOKEN_PATH is set",
        ),
        ("pathor1 status", {"RAY_AUTH_MODE": "disabled"}, f"{HERE}: the cluster asks for a token, and none is set; "),
        (
            "pathor1 data check {train}",
            {"RAY_ADDRESS": "127.0.0.1:6379", "RAY_AUTH_TOKEN": "0" * 40},
            "the Ray cluster asks for a token and takes none that is set here, which may have expired; set RAY_AUTH_",
        ),
        (
            f"{AS_OTHER} submit {RECIPE}",
            {},
            rf"{HERE}: the cluster runs Ray 2\.6\d[\d.]+, and pathor1 needs 2\.58\.1, as is installed here; install",
        ),
        (
            f"{AS_OTHER} data check {{train}}",
            {"RAY_ADDRESS": "127.0.0.1:6379"},
            r"the Ray cluster runs Ray 2\.6[\d.]+ on Python 3[\d.]+, and this process Ray 2\.58\.1 on Python 3[\d.]+",
        ),
    ],
)
def test_what_is_wrong_with_a_cluster_is_one_line(
    head: Head, small: Small, command: str, variables: dict[str, str], line: str
) -> None:
    done = head.run(command.format(train=small.train), seconds=120, variables=variables)
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout == ""
    # Ray's own library has warnings of its own: there is no way out of the namespace, a token is not taken.
    said = [each for each in done.stderr.splitlines() if not re.match(r"\[20.* (network_util|gcs_client)\.cc:", each)]
    assert len(said) == 1, done.stderr
    assert re.match(f"pathor1: {line}", said[0]), done.stderr


def test_a_secret_that_a_node_lacks_is_one_line(head: Head) -> None:
    code = "from pathor1.ray_cluster import ray_cluster; "
    code += "ray_cluster({}, secrets=['LAB_PASSWORD', 'MINE']).__enter__()"
    variables = {"RAY_ADDRESS": "127.0.0.1:6379"}
    for more, where in (({}, "this process"), ({"MINE": "1"}, "node ")):
        done = head.run(f"python -c {shlex.quote(code)}", seconds=120, variables={**variables, **more})
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith(f"pathor1.errors.RunError: cluster.secrets: MINE not set in the environment of {where}")


def long_submit(small: Small, runs: Path) -> str:
    settings = ("name=long", "rl.steps=500", "rl.save_every=5")
    return f"pathor1 submit {RECIPE} {options(small, runs, *settings)}"


@pytest.fixture(scope="module")
def long_run(head: Head, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, past its first step, that goes on until a test stops it: the job `long`."""
    runs = tmp_path_factory.mktemp("long")
    submit = long_submit(small, runs)
    assert head.run(submit, seconds=60).stdout == "long-1\n"
    # A job that waits for what the cluster does not have never starts.
    stuck = "ray job submit --submission-id stuck --no-wait --entrypoint-num-gpus 8 -- true"
    assert head.run(stuck, seconds=60).returncode == 0
    with ThreadPoolExecutor(1) as beside:
        stopping = beside.submit(head.run, "pathor1 stop stuck", seconds=120)
        written = runs / "long/metrics.jsonl"
        try:
            wait_until(lambda: written.is_file() and bool(written.read_text()), STARTED, "a first step")
        except AssertionError as error:
            raise AssertionError(f"{error}; {head.run('pathor1 logs long', seconds=60).stdout[-9000:]}") from None
    assert stopping.result().returncode == 2
    assert stopping.result().stderr.startswith("pathor1: stuck: is PENDING, and Ray cannot stop a job that has not ")
    return runs / "long"


def test_the_dashboard_shows_a_run_by_names_that_say_what_they_are(head: Head, long_run: Path) -> None:
    (jobs,) = head.fetch(f"{DASHBOARD}/api/jobs/")
    (job,) = [job["job_id"] for job in jobs if job["submission_id"] == "long-1"]
    pages = [f"/api/data/datasets/{job}", "/api/v0/actors?limit=1000", "/api/v0/tasks?limit=9000"]
    data, actors, tasks = head.fetch(*(DASHBOARD + page for page in pages))
    names = [dataset["dataset"] for dataset in data["datasets"]]
    assert names[-1].startswith("samples_train_from_epoch_0_"), "the oldest stands last"
    assert [operator["name"] for operator in data["datasets"][-1]["operators"]] == ["Input", "ReadSamples"]
    alive = [actor for actor in actors["data"]["result"]["result"] if actor["state"] == "ALIVE"]
    named = {actor["class_name"].split(".")[-1]: actor["name"] for actor in alive if actor["job_id"] == job}
    assert named["QuestionGroupServer"] == "vllm_server_0_0"
    assert named["QuestionGroupWorker"].startswith("agent_loop_worker_0")
    assert named["WorkerDict"].endswith("WorkerDict_0:0")
    done = {task["name"] for task in tasks["data"]["result"]["result"] if task["job_id"] == job}
    assert {"ReadSamples", "QuestionGroupWorker.finished", "QuestionGroupServer.generate_group"} <= done


@needs_prometheus
def test_every_query_of_the_dashboard_has_an_answer_and_every_alert_is_computed(
    head: Head, long_run: Path, tmp_path: Path
) -> None:
    found = {"files": [str(head.folder / "prom_metrics_service_discovery.json")]}
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [found]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too
    options = f"--config.file={tmp_path}/prometheus.yml --storage.tsdb.path={tmp_path}/data"
    # exec: whoever waits for the shell would wait for its child, too.
    command = f"exec prometheus {options} --web.listen-address=127.0.0.1:9090 > {tmp_path}/log 2>&1 & echo $!"
    process = head.run(command, seconds=30).stdout.strip()
    try:
        wait_until(lambda: "Server is ready" in (tmp_path / "log").read_text(), 60, "Prometheus")
        of_run = [(name, query.replace("$run", "long").replace("$SessionName", ".*")) for name, query in queries()]
        addresses = [f"{PROMETHEUS}/api/v1/query?{urlencode({'query': query})}" for _, query in of_run]

        def without_answer() -> list[str]:
            answers = list(zip(of_run, head.fetch(*addresses), strict=True))
            wrong = {name: answer["error"] for (name, _), answer in answers if answer["status"] != "success"}
            assert not wrong
            empty = [(name, query) for (name, query), answer in answers if not answer["data"]["result"]]
            return [name for name, query in empty if not metrics(query) & set(OF_GPUS)]

        with suppress(AssertionError):
            wait_until(lambda: not without_answer(), 120, "an answer to every query")
        assert without_answer() == []
        chosen = {"match[]": "ray_pathor1_step"}
        runs, rules = head.fetch(
            f"{PROMETHEUS}/api/v1/label/run/values?{urlencode(chosen)}", f"{PROMETHEUS}/api/v1/rules"
        )
        assert "long" in runs["data"]
        computed = [rule for group in rules["data"]["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in computed} == {"ok"}
        firing = {rule["name"] for rule in computed if rule["state"] != "inactive"}
        assert not firing & {"Pathor1RunStalled", "Pathor1RunGone", "Pathor1ProbabilityDifference", "Pathor1BadSamples"}
    finally:
        head.run(f"kill {process}", seconds=30)


def test_a_stopped_run_leaves_no_process_behind(head: Head, small: Small, long_run: Path) -> None:
    submit = long_submit(small, long_run.parent)

    def of_the_run() -> list[str]:
        return [line for line in head.processes() if any(part in line for part in PARTS)]

    # A process that does something just now bears the name of that: it is looked for until it is seen.
    for part in PARTS[:5]:
        wait_until(lambda part=part: any(part in line for line in of_the_run()), 60, f"{part} among the processes")
    again = head.run(submit, seconds=60)
    assert again.returncode == 2
    assert re.match(
        r"pathor1: long: is in use, job long-1 is RUNNING since [0-9 :-]+; `pathor1 stop long-1`", again.stderr
    )
    stopped = head.run("pathor1 stop long", seconds=180)
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.startswith("long-1: STOPPED since ")
    last = json.loads((long_run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert f"\n  step        {last}/500, " in stopped.stdout
    said = head.run("pathor1 logs long", seconds=60).stdout[-3000:]
    assert stopped.stdout.endswith(f"\n  checkpoint  of step {last}\n"), said
    assert "Job 'long-1' was stopped" in status(head, "long-1")
    wait_until(lambda: not of_the_run(), 60, "no process of the run left")
    assert head.run("pathor1 stop long", seconds=60).stdout == stopped.stdout, "it has ended, once"
    assert head.run("pathor1 logs --follow long", seconds=60).returncode == 1, "it did not do what it was to do"


LISTENING = """
import psutil
start = next(parent for parent in psutil.Process().parents() if "ray.scripts.scripts" in " ".join(parent.cmdline()))
sockets = [each for child in start.children(recursive=True) for each in child.net_connections("inet")]
print("step", sorted({each.laddr.ip.removeprefix("::ffff:") for each in sockets if each.status == "LISTEN"}))
"""


def test_the_demos_own_head_works_beside_another_cluster_and_for_its_machine_alone(head: Head, tmp_path: Path) -> None:
    (tmp_path / "listening.py").write_text(LISTENING)
    code = f"from pathor1.demo import submit; submit(['python', '{tmp_path}/listening.py'], name='x')"
    done = head.run(f"python -c {shlex.quote(code)}", seconds=180)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "   step ['127.0.0.1']" in done.stdout.splitlines()
    assert head.run("ray job list", seconds=60).returncode == 0, "the other cluster is still there"
    bad = "from pathor1.demo import submit; submit(['false'], name='x')"
    done = head.run(f"python -c {shlex.quote(bad)}", seconds=180)
    assert done.returncode != 0
    assert "ended as FAILED" in done.stderr
