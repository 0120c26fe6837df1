"""How long it takes from the command to the end of the first step: pathor1, stock verl and TRL.

    .venv/bin/python benchmarks/first_step.py --rounds 3 --out first_step.json

Contestants take turns, each in processes of its own, on the small model of `step_overhead.py`; see `contestants.py`.
TRL has one process and no cluster. pathor1 and verl start a Ray of their own, and then, as `warm`, join one that has
had a job before: only Ray itself is there already, as each job starts its own processes.

seconds   From the start of the command to the line of the first step, the median, with the shortest and the longest.
CPU       Seconds of CPU until then, of all processes that are alive at its end; not told where the cluster, whose
          processes they are then, was there before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import contestants

NAMES = ("pathor1", "pathor1 warm", "verl", "verl warm", "trl")


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """A Ray head on this machine; gives the variables by which it is joined."""
    from pathor1.ray_cluster import LOOPBACK, PRESTART

    ours = {**LOOPBACK, "RAY_AUTH_MODE": "disabled"}  # nobody else speaks with it, and a head makes a token otherwise
    environment = {**ours, PRESTART: "0", **os.environ}
    environment.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="r-") as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"]
        command += ["--disable-usage-stats", "--include-dashboard=false", "--num-cpus=16", "--num-gpus=1"]
        command += ["--object-store-memory=1000000000", f"--temp-dir={folder}"]
        log = Path(folder, "head.log")
        with log.open("wb") as output:
            head = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield {**ours, "RAY_ADDRESS": _address(folder, head)}
        finally:
            head.terminate()
            head.wait(60)


def _address(folder: str, head: subprocess.Popen[bytes]) -> str:
    """Where the head listens, which it writes down when it does. Raises RuntimeError where it does not start."""
    written = Path(folder, "ray_current_cluster")
    for _ in range(1200):
        if written.exists() and (address := written.read_text(encoding="utf-8").strip()):
            return address
        if head.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"Ray's head did not start: {Path(folder, 'head.log').read_text(errors='replace')[-2000:]}")


def measure(name: str, job: contestants.Job) -> dict[str, float | None]:
    """Seconds of one run, and of CPU."""
    who, _, warm = name.partition(" ")
    with cluster() if warm else nullcontext({}) as joins:
        if warm:
            contestants.run(who, job, environment=joins)
        run = contestants.run(who, job, environment=joins)
    return {"seconds": round(run.ends[0], 2), "cpu": None if warm else round(run.at_step[0], 2)}


def row(name: str, found: Sequence[dict[str, Any]]) -> str:
    """One line of the table."""
    seconds = [each["seconds"] for each in found]
    cpus = [each["cpu"] for each in found if each["cpu"] is not None]
    cpu = f"  CPU {statistics.median(cpus):6.1f} s" if cpus else ""
    return f"{name:<13} {statistics.median(seconds):7.1f} s  ({min(seconds):.1f} to {max(seconds):.1f}){cpu}"


def main() -> None:
    """Runs all in turns, and tells of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where data, model and runs are made and kept")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.contestants}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        job = contestants.make(folder, contestants.SIZES["small"], 1)
        for _ in range(arguments.rounds):
            for name in arguments.contestants:
                found[name].append(measure(name, job))
    for name in arguments.contestants:
        print(row(name, found[name]), flush=True)
    if arguments.out:
        results: dict[str, Any] = {"machine": contestants.machine(), "runs": found}
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
