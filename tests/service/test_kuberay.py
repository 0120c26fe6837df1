"""A rendered RayJob, run as KubeRay would run it: a head and a worker by its own start commands, and its submitter's.

Both are on this machine, in one network namespace: the worker has other ports for what each pod has its own.
"""

from __future__ import annotations

import secrets
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kuberay
import pytest
from clusters import ISOLATED, Head, isolated
from processes import wait_until
from small import Small

from pathor1.recipe import load, to_toml
from pathor1.service import manifests
from pathor1.service.options import Options
from pathor1.service.pods import DRIVER, RANKS, RECIPE, SAVE

ADDRESS = "http://127.0.0.1:8265"
# A driver that takes its time to save.
SLOW_DRIVER = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(5)
    pathlib.Path("saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
pathlib.Path("running").touch()
while True:
    time.sleep(0.1)
"""
RUN = 600  # seconds that a run of one step may take on two busy cores
pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True)
class Pods:
    """The running pods of a RayJob. `token` is Ray's, which KubeRay would have made."""

    inside: Head
    job: dict[str, Any]
    token: str
    folder: Path

    def run(self, command: str, *, pod: str = "head", seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command with a pod's variables, as `kubectl exec` would, and as the submitter's container does."""
        return self.inside.run(f"set -a; . {self.folder}/{pod}.env; set +a; {command}", seconds=seconds)


@pytest.fixture(scope="module")
def pods(small: Small) -> Iterator[Pods]:
    storage = small.recipe.parent
    recipe = load(
        small.recipe,
        [
            *("name=kube", "model.path=model", "data.train=['data/train.parquet']"),
            *("rl.steps=1", "rl.prompts_per_step=8", "rl.group_size=2"),
            *("cluster.accelerator=cpu", "cluster.object_store_gb=0.2"),
        ],
    )
    job = manifests.ray_job(recipe, Options(mount=str(storage), interface="lo"))
    with tempfile.TemporaryDirectory(prefix="p1-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder, token = Path(name), secrets.token_hex(32)
        job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace(RECIPE, f"{folder}/recipe.toml")
        (folder / "recipe.toml").write_text(to_toml(recipe))
        cluster = job["spec"]["rayClusterSpec"]
        (group,) = cluster["workerGroupSpecs"]
        cluster["headGroupSpec"]["rayStartParams"]["temp-dir"] = f"{folder}/ray"
        own_ports = {"metrics-export-port": "8081", "dashboard-agent-listen-port": "52366"}
        group["rayStartParams"] = {**group["rayStartParams"], **own_ports}
        head, worker = kuberay.start_command(cluster), kuberay.start_command(cluster, group, address="127.0.0.1:6379")
        for pod, template in (("head", cluster["headGroupSpec"]["template"]), ("worker", group["template"])):
            variables = {one["name"]: one["value"] for one in template["spec"]["containers"][0]["env"]}
            variables |= {
                "PYTHONUNBUFFERED": "1",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": token,
                "RAY_ADDRESS": "127.0.0.1:6379",
            }
            lines = [f"{key}={shlex.quote(value)}\n" for key, value in variables.items()]
            (folder / f"{pod}.env").write_text("".join(lines))
        wait = "until ray health-check --address 127.0.0.1:6379 > /dev/null 2>&1; do sleep 1; done"
        script = f"""
            ip link set lo up
            (set -a; . {folder}/head.env; set +a; exec {head}) > {folder}/head.log 2>&1 &
            (set -a; . {folder}/worker.env; set +a; {wait}; exec {worker}) > {folder}/worker.log 2>&1 &
            wait
        """
        with isolated([*ISOLATED, "bash", "-c", script], folder / "pods.log") as inside:
            log = folder / "worker.log"
            wait_until(
                lambda: log.exists() and "Ray runtime started" in log.read_text(), 300, "a worker that has joined"
            )
            yield Pods(inside=inside, job=job, token=token, folder=folder)


def test_kuberays_submit_command_runs_the_run(pods: Pods, small: Small) -> None:
    command = kuberay.submit_command(pods.job, ADDRESS)
    # The processes of the run that an eviction would look for.
    looks = [(pods.folder / "driver", DRIVER), (pods.folder / "ranks", RANKS)]
    look = "; ".join(f"while kill -0 $! && ! pgrep -f {what} > {file}; do sleep 0.2; done" for file, what in looks)
    done = pods.run(f"({command}) & {look}; wait $!", seconds=RUN)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "step 1/1" in done.stdout, "the submitter's log is the run's"
    assert "Job 'kube' succeeded" in done.stdout + done.stderr
    assert (small.recipe.parent / "runs/kube/checkpoints/step-000001/manifest.json").is_file(), "on the shared volume"
    drivers, ranks = (len(file.read_text().split()) for file, _ in looks)
    assert (drivers, ranks >= 1) == (1, True)
    # Kubernetes starts a submitter again that was evicted: the job is followed, not submitted a second time.
    again = pods.run(command)
    assert again.returncode == 0, again.stderr
    assert "step 1/1" in again.stdout
    listed = pods.run(f"ray job list --address {ADDRESS}")
    assert listed.stdout.count("submission_id='kube'") == 1


def test_nobody_submits_without_the_token(pods: Pods) -> None:
    for variables in ("RAY_AUTH_MODE=disabled", f"RAY_AUTH_TOKEN={'0' * 64}"):
        done = pods.run(f"{variables} ray job submit --address {ADDRESS} --no-wait -- echo planted")
        assert done.returncode != 0
    assert "planted" not in pods.run(f"ray job list --address {ADDRESS}").stdout
    # What the network policy is for.
    metrics = pods.run(
        "python -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/metrics').status)\""
    )
    assert metrics.stdout.strip() == "200", metrics.stderr


def test_the_token_is_in_no_log_and_in_no_command_line(pods: Pods, small: Small) -> None:
    assert pods.inside.processes()
    assert not [line for line in pods.inside.processes() if pods.token in line]
    places = [pods.folder / "ray", small.recipe.parent / "runs", pods.folder / "head.log", pods.folder / "worker.log"]
    searched = ["grep", "--recursive", "--files-with-matches", "--devices=skip", pods.token, *map(str, places)]
    done = subprocess.run(searched, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""


def slow_driver(folder: Path) -> str:
    """The command of a driver that takes five seconds to save, in a folder of its own, once it runs."""
    (folder / "ray_jobs").mkdir(parents=True)
    (folder / "ray_jobs/__init__.py").touch()
    (folder / "ray_jobs/slow.py").write_text(SLOW_DRIVER)
    return f"cd {folder} && python -m ray_jobs.slow"


def test_an_evicted_head_waits_for_the_drivers_checkpoint(pods: Pods) -> None:
    folder = pods.folder / "evicted"
    driver = f"({slow_driver(folder)}) & until test -e {folder}/running; do sleep 0.1; done"
    done = pods.run(f"{driver}; bash -c {shlex.quote(SAVE)}; test -e {folder}/saved || exit 1; wait $!")
    assert done.returncode == 143, "the checkpoint was there before the pod went, and the job is a failed one"
    assert pods.run(f"ray job list --address {ADDRESS}").returncode == 0, "nothing else was told to end"
    assert pods.run(f"bash -c {shlex.quote(SAVE)}").returncode == 0, (
        "where there is no run there is nothing to wait for"
    )


def test_a_stopped_job_has_more_than_rays_three_seconds(pods: Pods) -> None:
    folder = pods.folder / "stopped"
    submit = f"ray job submit --address {ADDRESS} --submission-id slow --no-wait"
    assert pods.run(f"{submit} -- bash -c {shlex.quote(slow_driver(folder))}").returncode == 0
    wait_until((folder / "running").exists, 60, "a driver that runs")
    assert pods.run(f"ray job stop --address {ADDRESS} slow").returncode == 0
    assert (folder / "saved").exists()


def test_an_evicted_worker_stays_while_it_has_ranks(pods: Pods) -> None:
    (container,) = pods.job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    *shell, script = container["lifecycle"]["preStop"]["exec"]["command"]
    assert shell == ["/bin/bash", "-c"]
    stay = f"bash -c {shlex.quote(script)}"
    assert pods.run(stay, pod="worker").returncode == 0, "it has none"
    rank = "(exec -a ray::WorkerDict.save_checkpoint sleep 5) &"
    done = pods.run(f"{rank} sleep 1; {stay}; kill -0 $! && exit 9; wait $!", pod="worker")
    assert done.returncode == 0
