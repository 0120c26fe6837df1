"""Faults that are provoked for real: each ends in a run that goes on by itself, or in one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from processes import Command, running, wait_until
from small import Small

STARTED = 600  # seconds that a run may take to its first step on two busy cores
NOTICED = 120  # seconds in which a fault has to be noticed and answered
pytestmark = pytest.mark.timeout(1800)
# A shell whose mounts nobody else sees; without root, in a user namespace as well.
SHELL = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "bash", "-c"]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def asked(run: Path, steps: int) -> list[int]:
    """The numbers of the questions of so many steps, as the ledger has them."""
    return [
        int(row["group"])
        for step in range(1, steps + 1)
        for row in pq.read_table(run / f"ledger/step-{step:06d}.parquet").to_pylist()
        if row["rollout"] == 0
    ]


def last_step(run: Path) -> int:
    steps = metrics(run) if (run / "metrics.jsonl").exists() else []
    return int(steps[-1]["step"]) if steps else 0


def forked(command: Command) -> set[str]:
    """The titles of those of its processes that were forked from the one that has imported their libraries."""
    found = {}
    for process, line in command.processes():
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(process).parent()
            found[line.split()[0].partition(".")[0]] = parent is not None and "pathor1.fork_server" in parent.cmdline()
    return {title for title, is_forked in found.items() if is_forked}


def test_a_run_outlives_its_processes_and_stops_when_it_is_asked_to(small: Small, tmp_path: Path) -> None:
    arguments = ["pathor1.cli", "rl", str(small.recipe), "--set", f"runs_dir={tmp_path}", "--set", "rl.save_every=1"]
    arguments += ["--set", "rl.learning_rate=1e-4"]  # many steps at 2e-3 and its rounding shows
    run = tmp_path / "run"
    with running([*arguments, "--set", "rl.steps=200"], tmp_path / "log") as command:
        wait_until(lambda: last_step(run) >= 1 or command.process.poll() is not None, STARTED, "a first step")
        assert {"VLLM::EngineCore", "ray::QuestionGroupServer", "ray::WorkerDict"} <= forked(command)
        for attempt, (part, said) in enumerate(
            (
                ("VLLM::EngineCore", "vLLM"),
                ("WorkerDict", "the training rank"),
                ("QuestionGroupServer", "the vLLM server"),
            ),
            start=1,
        ):
            before = last_step(run)
            command.kill_one(part)
            command.wait_for(f"restart {attempt} of 3", NOTICED)
            (line,) = [line for line in command.output().splitlines() if f"restart {attempt} of 3" in line]
            assert line.startswith(f"run: attempt {attempt} has failed ({said}"), line
            assert "has died" in line or "does not answer" in line
            wait_until(lambda before=before: last_step(run) > before + 1, STARTED, "steps after the restart")
        with running(arguments, tmp_path / "second") as second:
            assert second.finish(60) == 2
            assert f"{run}: this run is alive (process {command.process.pid} on " in second.output()
        command.process.send_signal(signal.SIGTERM)
        assert command.finish(NOTICED) == 143, command.output()[-3000:]
        last = command.output().strip().splitlines()[-1]
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")
    stopped = last_step(run)
    assert last == f"run: stopped behind step {stopped}; the same command goes on"
    assert json.loads((run / f"checkpoints/step-{stopped:06d}/manifest.json").read_text())["step"] == stopped
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".alive")]
    # What goes on is to be evaluated, and so are the weights that it begins with, as if it had been stopped in that.
    arguments += ["--set", f"rl.steps={stopped + 1}", "--set", "rl.evaluate_every=1", "--set", "rl.evaluate_samples=9"]
    with running([*arguments, "--set", f"data.test=['{small.train}']"], tmp_path / "log3") as command:
        assert command.finish(STARTED) == 0, command.output()[-3000:]
        assert f"step {stopped + 1}/{stopped + 1}" in command.output()
        assert "step 1/" not in command.output()
    assert sorted(path.name for path in (run / "eval/steps").iterdir()) == [
        f"step-{step:06d}.parquet" for step in (stopped, stopped + 1)
    ]
    for step in (stopped, stopped + 1):
        records = pq.read_table(run / f"eval/steps/step-{step:06d}.parquet").to_pylist()
        assert [row["policy_version"] for row in records] == [step] * 9
        assert metrics(run)[step - 1]["evaluation/questions"] == 9
        known = json.loads((run / f"checkpoints/step-{step:06d}/manifest.json").read_text())["evaluations"]
        assert known[-1]["step"] == step, "not evaluated again, wherever the run goes on"
    steps = metrics(run)
    assert [step["step"] for step in steps] == list(range(1, stopped + 2))
    restarts = [int(step["run/restarts"]) for step in steps]
    assert restarts == [*sorted(restarts[:stopped]), 0], "another command counts anew"
    assert set(restarts) == {0, 1, 2, 3}
    assert all(step["rollout/probability_difference_max"] < 1e-3 for step in steps)
    assert asked(run, stopped + 1) == list(range(8 * (stopped + 1))), "each once, in the stream's order, none lost"


# Somebody else's job: it puts objects into the cluster's store and keeps them, ever smaller ones where none fits.
FILLER = """
import contextlib, psutil, ray, sys
words = []
for process in psutil.Process(int(sys.argv[1])).children(recursive=True):
    with contextlib.suppress(psutil.Error):  # it ends while it is looked at
        words += process.cmdline()
address = next(word.partition("=")[2] for word in words if word.startswith("--gcs-address="))
ray.init(address=address, log_to_driver=False)
kept, size = [], 8 << 20
while True:
    try:
        kept.append(ray.put(bytes(size)))
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        print(type(error).__name__, len(kept), size, flush=True)
        size = max(size // 8, 1024)
"""


def test_an_object_store_that_fills_and_then_a_disk_while_a_checkpoint_is_written(small: Small, tmp_path: Path) -> None:
    # Disks of its own, one of the run and one that Ray spills its objects to, and a Ray of its own, for the commands of
    # this shell alone. Somebody fills each, and clears it again.
    command = f"{sys.executable} -m pathor1.cli rl {small.recipe} --set runs_dir={tmp_path}/disk --set rl.save_every=1"
    command += " --set rl.learning_rate=1e-6 --set cluster.object_store_gb=0.1 --set rl.steps"
    (tmp_path / "filler.py").write_text(FILLER)
    script = f"""
        cd {tmp_path} && mkdir -p disk spilled /tmp/ray
        mount -t tmpfs -o size=100m none disk; mount -t tmpfs -o size=50m none spilled; mount -t tmpfs none /tmp/ray
        export RAY_AUTH_MODE=disabled RAY_object_spilling_directory={tmp_path}/spilled
        {command}=200 > log 2>&1 &
        run=$!
        appears() {{ until grep -q "$1" log; do kill -0 $run || exit; sleep 0.2; done; }}
        appears "step 1/"
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 {sys.executable} filler.py $run > filler 2>&1 &
        filler=$!
        date +%s > begun
        until grep -q Error filler; do kill -0 $run && kill -0 $filler || exit; sleep 0.2; done
        appears "restart 1 of"; date +%s > ended
        kill $filler
        restarts=$(grep -n "restart 1 of" log | cut -d: -f1)
        until tail -n +$restarts log | grep -q "^step"; do kill -0 $run || exit; sleep 0.2; done
        dd if=/dev/zero of=disk/else 2> full
        wait $run; echo $? > code
        for folder in disk/run/checkpoints/*; do ls $folder/manifest.json; done > kept 2>&1
        rm disk/else
        {command}=$(($(wc -l < disk/run/metrics.jsonl) + 1)) > log2 2>&1 || exit
        cp -r disk/run/metrics.jsonl disk/run/ledger .
    """
    with running([script], tmp_path / "shell", program=SHELL) as shell:
        code = shell.finish(3 * STARTED)
    assert code == 0, "".join((tmp_path / name).read_text()[-3000:] for name in ("shell", "filler", "log"))
    log = (tmp_path / "log").read_text()
    (failed,) = [line for line in log.splitlines() if "restart 1 of 3" in line]
    assert failed.startswith(
        "run: attempt 1 has failed (Ray's object store is full, and so is the disk that it spills to;"
    )
    seconds = [int((tmp_path / name).read_text()) for name in ("begun", "ended")]
    assert seconds[1] - seconds[0] < NOTICED
    assert (tmp_path / "code").read_text() == "2\n", log[-3000:]
    last = log.strip().splitlines()[-1]
    assert last.startswith("pathor1: disk full: "), last
    assert last.endswith("free some space and run this again (`pathor1 rl --resume RUN` goes on)")
    kept = (tmp_path / "kept").read_text().splitlines()
    assert kept
    assert all(re.fullmatch(r"disk/run/checkpoints/step-0000\d\d/manifest.json", line) for line in kept), kept
    steps = [step["step"] for step in metrics(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert asked(tmp_path, len(steps)) == list(range(8 * len(steps))), "no question lost to either"
