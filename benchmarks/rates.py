"""How fast trainings are that take turns: what is seen of them from outside, and the table that it makes.

Steps are counted in what a training writes, and each time that there are more, the clock is read and the CPU that all
of its processes have spent: whoever had to wait for whom, and whatever else the machine did, that is what it cost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from contestants import MARK, ROOT, cpu_seconds_of, end, machine, processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """So many steps are done, so many seconds after the start, with so many seconds of CPU."""

    step: int
    seconds: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One run of one training. per_second, per_cpu_second: samples, behind the warm-up; losses: of all steps."""

    name: str
    seconds: float  # of the whole command
    per_second: float
    per_cpu_second: float
    losses: list[float]


def watch(command: Sequence[str], log: Path, done: Callable[[], int], **variables: str) -> list[Look]:
    """Runs a command to its end. log: what it says; done: how many steps it has done.

    Raises SystemExit with the end of what it has said where it fails.
    """
    mark = uuid.uuid4().hex
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and what was started ends too
    more = {**variables, MARK: mark, "SPT_NOENV": "1"}  # see contestants.run for the last
    started, looks = time.monotonic(), [Look(step=0, seconds=0.0, cpu=0.0)]
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **more}, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while (code := process.poll()) is None:
                if (step := done()) > looks[-1].step:
                    cpu = sum(map(cpu_seconds_of, processes(mark)))
                    looks.append(Look(step=step, seconds=time.monotonic() - started, cpu=cpu))
                time.sleep(0.02)
        finally:
            end(process, mark)
    if code:
        raise SystemExit(f"{' '.join(command)}:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
    return looks


def rated(name: str, looks: Sequence[Look], losses: list[float], *, warm: int, batch: int) -> Round:
    """Of steps of so many samples each, from the first look with `warm` steps or more on."""
    first = next(look for look in looks if look.step >= warm)
    last = looks[-1]
    samples = (last.step - first.step) * batch
    return Round(
        name=name,
        seconds=last.seconds,
        per_second=samples / (last.seconds - first.seconds),
        per_cpu_second=samples / (last.cpu - first.cpu),
        losses=losses,
    )


def lines_of(path: Path) -> int:
    """Whole lines of a file, 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def losses_of(metrics: Path) -> list[float]:
    """Of a run of pathor1's."""
    return [json.loads(line)["loss"] for line in metrics.read_text(encoding="utf-8").splitlines()]


def table(rounds: Sequence[Round], what: str, *, last: int) -> str:
    """Medians over the rounds of each training, by name; of the losses, those of the last steps."""
    rows = [f"{'':12}{what + '/s':>12}{'/CPU s':>12}{'whole run, s':>14}{'first loss':>12}{f'last {last}':>12}"]
    for name in dict.fromkeys(each.name for each in rounds):
        of_name = [each for each in rounds if each.name == name]
        values = [
            median(each.per_second for each in of_name),
            median(each.per_cpu_second for each in of_name),
            median(each.seconds for each in of_name),
        ]
        first, end_ = of_name[0].losses[0], fmean(fmean(each.losses[-last:]) for each in of_name)
        rows.append(f"{name:12}{values[0]:12.1f}{values[1]:12.1f}{values[2]:14.1f}{first:12.4f}{end_:12.4f}")
    return "\n".join(rows)


def write(rounds: Sequence[Round], settings: Mapping[str, Any], path: Path) -> None:
    """All that was measured, as JSON."""
    told = {
        "machine": machine(),
        "settings": dict(settings),
        "rounds": [{name: getattr(each, name) for name in Round.__slots__} for each in rounds],
    }
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
