"""When a phase is told of and when it counts as hung; stacks of a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pathor1.rl import health
from pathor1.rl.health import Health, stack


class Clock:
    """A clock that is set."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(health, "time", clock)
    monkeypatch.setattr(Health, "_stacks", lambda self, phase: "who is waited for")
    return clock


def steps(run: Health, clock: Clock, *seconds: float) -> None:
    """So many steps of a generation and an update that takes one second."""
    for each in seconds:
        run.phase("generation")
        clock.now += each
        run.phase("update")
        clock.now += 1


def test_a_phase_is_told_of_when_it_takes_five_times_as_long_as_usual(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Health(hang_after=1800)
    steps(run, clock, 30, 20, 40)
    run.phase("generation")
    clock.now += 150
    assert run._slow() is None
    assert capsys.readouterr().out == ""
    clock.now += 1
    assert run._slow() is None
    said = "slow: generation has taken 151 s, usually 30 s; waiting for:\nwho is waited for\n"
    assert capsys.readouterr().out == said
    clock.now += 100
    run._slow()
    assert capsys.readouterr().out == "", "once, until it has taken twice as long"
    clock.now += 52
    run._slow()
    assert capsys.readouterr().out.startswith("slow: generation has taken 303 s")


def test_short_phases_are_given_a_minute_and_first_ones_five(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run = Health(hang_after=1800)
    steps(run, clock, 1, 1)
    run.phase("update")
    clock.now += 60
    run._slow()
    assert capsys.readouterr().out == ""
    clock.now += 1
    run._slow()
    assert capsys.readouterr().out.startswith("slow: update has taken 61 s, usually 1 s")
    run.phase("checkpoint")
    clock.now += 300
    run._slow()
    assert capsys.readouterr().out == ""
    clock.now += 1
    run._slow()
    assert capsys.readouterr().out.startswith("slow: checkpoint has taken 301 s; waiting for:")


def test_a_hang_is_longer_than_the_recipe_allows_and_than_ten_times_the_usual(clock: Clock) -> None:
    run = Health(hang_after=100)
    steps(run, clock, 30, 30)
    run.phase("generation")
    clock.now += 299
    assert run._slow() is None
    clock.now += 2
    assert run._slow() == "generation has taken 301 s, which counts as hung (cluster.hang_after)"
    run.phase("checkpoint")
    clock.now += 101
    assert run._slow() == "checkpoint has taken 101 s, which counts as hung (cluster.hang_after)"


def test_the_stack_of_a_process_says_where_it_stands() -> None:
    code = "import time\ndef waits_for_ever():\n    print(flush=True)\n    time.sleep(60)\nwaits_for_ever()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            text = stack(process.pid)
        finally:
            process.kill()
    assert "waits_for_ever (<string>:" in text or "needs the right to trace" in text
    assert stack(process.pid) == "  gone"


def test_stacks_are_those_of_the_processes_group_too_whoever_their_parent_is() -> None:
    code = "import os, time\ndef waits_elsewhere():\n    print(flush=True)\n    time.sleep(60)\n"
    code += "if os.fork():\n    time.sleep(60)\nparent = os.getpid()\nif os.fork():\n    os._exit(0)\n"
    code += "while os.getppid() == parent:\n    time.sleep(0.01)\nwaits_elsewhere()"
    asked = [sys.executable, "-c", code]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            text = stack(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert "waits_elsewhere (<string>:" in text or "needs the right to trace" in text
