"""Attempts at a run: real children that fail, hang, and leave others behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

# Runs the child in attempts, as `pathor1 rl` does; a process of its own, as it takes in all orphans and signals.
PARENT = """
import sys
from pathor1 import attempts, errors
attempts.TIDY, attempts.MARGIN = 0.5, 0.5
try:
    takes_in = len(sys.argv) == 1
    sys.exit(attempts.run(["child"], name="mine", max_restarts=2, stop_grace=0.5, takes_in=takes_in))
except errors.RunError as error:
    sys.exit(f"pathor1: {error}")
"""
START = """
import os, signal, subprocess, sys, time
from pathor1 import attempts
attempts.begin()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def started(child: str, *words: str) -> subprocess.Popen[str]:
        (tmp_path / "child.py").write_text(START + child)
        return subprocess.Popen(
            [sys.executable, "-c", PARENT, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )

    return started


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.splitlines()


def test_a_child_that_fails_is_started_again_until_it_is_done(start: Start) -> None:
    code, lines = ended(
        start(
            "attempts.report_ready(); print('attempt', attempts.number(), flush=True)\n"
            "if attempts.number() == 1: attempts.report_reason('the node\\nis gone'); sys.exit(1)\n"
            "if attempts.number() == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        )
    )
    assert code == 0
    assert lines == [
        "attempt 1",
        "mine: attempt 1 has failed (the node is gone); restart 1 of 2 (cluster.max_restarts)",
        "attempt 2",
        "mine: attempt 2 has failed (killed by signal 9, SIGKILL); restart 2 of 2 (cluster.max_restarts)",
        "attempt 3",
    ]


def test_when_the_restarts_are_spent_the_last_line_says_why(start: Start) -> None:
    code, lines = ended(
        start(
            "attempts.report_ready(); attempts.report_step(attempts.number())\n"
            "attempts.report_reason('vLLM has died'); sys.exit(1)"
        )
    )
    assert code == 1
    assert len(lines) == 3
    assert lines[-1] == (
        "pathor1: mine: attempt 3 has failed (vLLM has died); no restart is left, 2 were made; the same command goes on"
    )


@pytest.mark.parametrize(("child", "code"), [("sys.exit(2)", 2), ("attempts.report_ready(); sys.exit(2)", 2)])
def test_what_a_restart_would_not_change_is_final(start: Start, child: str, code: int) -> None:
    assert ended(start(child)) == (code, [])


def test_a_child_that_never_got_ready_is_not_started_again(start: Start) -> None:
    assert ended(start("sys.exit(1)")) == (1, [])


def test_a_stop_is_passed_on_and_is_no_failure(start: Start) -> None:
    parent = start(
        "def stop(number, frame):\n    print('saved', flush=True)\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); attempts.report_ready(); print('ready', flush=True); time.sleep(60)"
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGTERM)
    code, lines = ended(parent)
    assert code == 143
    assert lines == ["asked to stop: saving a checkpoint, at most 0 s (cluster.stop_grace)", "saved"]


def test_a_stop_that_meets_a_failing_attempt_says_why_it_failed(start: Start) -> None:
    child = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); attempts.report_ready()\n"
    child += "attempts.report_reason('the queue is gone'); print('ready', flush=True); time.sleep(60)"
    parent = start(child)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGTERM)
    code, lines = ended(parent)
    assert code == 143
    assert lines[-1] == "mine: attempt 1 has failed (the queue is gone), and was to stop anyway"


def test_ctrl_c_is_a_stop_and_a_second_one_ends_at_once(start: Start) -> None:
    parent = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)")
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGINT)
    assert parent.stdout.readline().startswith("asked to stop: ")
    parent.send_signal(signal.SIGINT)
    code, lines = ended(parent)
    assert code == 130
    assert lines == ["not stopped in time: ended where it was, the checkpoint before counts"]


def test_a_child_that_does_not_stop_within_its_grace_is_ended(start: Start) -> None:
    parent = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)")
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGTERM)
    code, lines = ended(parent)
    assert code == 143
    assert lines[-1] == "not stopped in time: ended where it was, the checkpoint before counts"


def test_nothing_that_a_child_started_outlives_it(start: Start) -> None:
    # Detached, with a session of its own, as Ray's processes are.
    parent = start(
        "left = subprocess.Popen(['sleep', '61'], start_new_session=True, stdout=subprocess.DEVNULL)\n"
        "print(left.pid, flush=True); os._exit(1)"
    )
    assert parent.stdout is not None
    left = int(parent.stdout.readline())
    assert ended(parent) == (1, [])
    assert not psutil.pid_exists(left)


def test_a_child_ends_with_its_parent(start: Start) -> None:
    parent = start("print(os.getpid(), flush=True); time.sleep(61)")
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_attempt_that_hangs_is_ended_with_its_reason(start: Start) -> None:
    code, lines = ended(start("attempts.end_within(0.2, 'the rank has died'); time.sleep(60)"))
    assert code == 1
    assert lines == ["pathor1: the rank has died"]


def test_what_fails_twice_at_the_same_place_is_not_tried_again(start: Start) -> None:
    code, lines = ended(
        start(
            "attempts.report_ready(); attempts.report_step(6); attempts.report_step(7)\n"
            "attempts.report_reason('TypeError: x'); sys.exit(1)"
        )
    )
    assert code == 1
    assert lines == [
        "mine: attempt 1 has failed (TypeError: x); restart 1 of 2 (cluster.max_restarts)",
        "pathor1: mine: attempt 2 has failed (TypeError: x), behind step 7 as the one before; another would, too",
    ]


def test_a_run_of_many_steps_is_not_held_up_by_what_it_reports(start: Start) -> None:
    code, lines = ended(start("for step in range(100_000): attempts.report_step(step)\nprint('done')"))
    assert (code, lines) == (0, ["done"])


def test_a_run_that_was_done_when_it_was_asked_to_stop_is_done(start: Start) -> None:
    process = start("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('ready', flush=True)\ntime.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert ended(process)[0] == 0


def test_in_a_job_what_has_left_its_parent_is_not_below_this_process(start: Start) -> None:
    """Ray would signal it when it stops the job."""
    parent = start(
        "left = subprocess.Popen([sys.executable, '-c', 'import os, time; os.fork() and os._exit(0); "
        "print(os.getpid(), flush=True); time.sleep(60)'])\n"
        "left.wait(); time.sleep(600)",
        "in a job",
    )
    assert parent.stdout is not None
    left = psutil.Process(int(parent.stdout.readline()))
    try:
        assert left.pid not in {child.pid for child in psutil.Process(parent.pid).children(recursive=True)}
        parent.terminate()
        assert parent.wait(60) == 128 + signal.SIGTERM
        assert left.is_running()
    finally:
        left.kill()
