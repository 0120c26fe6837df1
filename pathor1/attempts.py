"""A run in attempts: a child process that is started again, a bounded number of times, when something around it fails.

The child is the run itself. What it starts (Ray, vLLM, the actor) ends with it: where the run started Ray itself, this
process takes in whatever its child leaves behind, and ends it; in a Ray job, Ray ends what belongs to a driver that is
gone. There nothing is taken in: Ray stops a job by a signal to its process and all below it, and what starts the
workers has left its parent so that they are there still when the checkpoint is written. This process imports nothing
heavy, so that it does not fail for the reasons for which its child does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from pathor1.errors import RunError

# What a child is told, and by which it knows that it is one.
ATTEMPT, REPORT = "PATHOR1_ATTEMPT", "PATHOR1_REPORT_FD"
# Exit codes that a restart would not change: done, wrong input.
FINAL = (0, 2)
# Those of a child that was asked to stop: it did, before or after it could save anything, or it was ended.
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)
# Seconds that the child's own processes have to end after it, and that a stopped child has beyond its grace.
TIDY, MARGIN = 5.0, 10.0
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
_LOOK = 0.1


def number() -> int:
    """Which attempt at its run this process is, from 1; 0 = it is none."""
    return int(os.environ.get(ATTEMPT, "0"))


def begin() -> None:
    """What an attempt does first: it ends with its parent, and leaves Ctrl-C to it, which asks for a stop instead."""
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it was gone before
        raise SystemExit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if REPORT in os.environ:
        os.set_inheritable(int(os.environ[REPORT]), False)


def report_ready() -> None:
    """The run has begun to train: when it fails from now on, the reason may lie around it."""
    _report("ready")


def report_step(step: int) -> None:
    """So far the run has come."""
    _report(f"step {step}")


def report_reason(reason: str) -> None:
    """Why this attempt fails, in one line, for who decides on the next."""
    _report(f"reason {' '.join(reason.split())}")


def _report(line: str) -> None:
    if REPORT in os.environ:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(int(os.environ[REPORT]), f"{line}\n".encode())


def end_within(seconds: float, reason: str, *, code: int = 1) -> None:
    """This attempt has failed: it ends by itself or, where it waits for what will never come, after so many seconds.

    Does nothing in a process that is no attempt.
    """
    if not number():
        return
    report_reason(reason)

    def end() -> None:
        print(f"pathor1: {reason}", file=sys.stderr, flush=True)
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


@dataclass(kw_only=True)
class _Attempt:
    """What came of one. step: the last one that it has done, None = none."""

    code: int
    ready: bool
    step: str | None
    reason: str


@dataclass(kw_only=True)
class _Stop:
    """When this process was asked to stop and by what."""

    number: int = 0
    at: float = 0.0
    again: bool = False

    def ask(self, number: int, _: Any) -> None:
        self.again = self.number != 0
        if not self.again:
            self.number, self.at = number, time.monotonic()


def run(command: Sequence[str], *, name: str, max_restarts: int, stop_grace: float, takes_in: bool) -> int:
    """Runs `python -m` with these arguments until it is done, and returns the exit code of the last attempt.

    An attempt that fails before it has trained, or by the user's input, is the last, and so is one that fails where the
    one before did, for the same reason; others are followed by up to `max_restarts` more. On SIGTERM or Ctrl-C the
    attempt is asked to stop, which saves a checkpoint, and has `stop_grace` seconds for that; a second Ctrl-C ends it
    at once. takes_in: whether what a child leaves behind is ended here. Raises RunError when no restart is left or
    would help.
    """
    if takes_in:
        _prctl(_SET_CHILD_SUBREAPER, 1)
    before: _Attempt | None = None
    with _stop_asked() as stop:
        for attempt in range(1, max_restarts + 2):
            done = _attempt(command, attempt, stop, stop_grace)
            if done.code in FINAL:  # also where it was asked to stop when it was done already
                return done.code
            if stop.number:
                if done.code not in STOPPED:
                    print(f"{name}: attempt {attempt} has failed ({done.reason}), and was to stop anyway", flush=True)
                return 128 + stop.number
            if attempt == 1 and not done.ready:
                return done.code
            why = f"{name}: attempt {attempt} has failed ({done.reason})"
            if before is not None and (done.step, done.reason) == (before.step, before.reason):
                where = "before its first step" if done.step is None else f"behind step {done.step}"
                raise RunError(f"{why}, {where} as the one before; another would, too")
            before = done
            if attempt > max_restarts:
                raise RunError(f"{why}; no restart is left, {max_restarts} were made; the same command goes on")
            print(f"{why}; restart {attempt} of {max_restarts} (cluster.max_restarts)", flush=True)
    raise AssertionError("the last attempt returns or raises")


def _told(code: int) -> str:
    return f"killed by signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _attempt(command: Sequence[str], attempt: int, stop: _Stop, grace: float) -> _Attempt:
    """Runs the command once."""
    listen, tell = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            env={**os.environ, ATTEMPT: str(attempt), REPORT: str(tell)},
            pass_fds=(tell,),
        )
        os.close(tell)
        code, said = _wait(child, listen, stop, grace)
    finally:
        os.close(listen)
    _tidy(TIDY)
    # The last line of each kind counts.
    told = dict(line.partition(" ")[::2] for line in said.decode(errors="replace").splitlines())
    return _Attempt(code=code, ready="ready" in told, step=told.get("step"), reason=told.get("reason") or _told(code))


def _wait(child: subprocess.Popen[bytes], listen: int, stop: _Stop, grace: float) -> tuple[int, bytes]:
    """The child's exit code and what it has reported. Reaps whatever else it has left on the way."""
    asked, said = False, b""
    while True:
        code = _reap(child.pid)
        said += _read(listen)
        if code is not None:
            child.returncode = code  # subprocess would look for a child that is gone
            return code, said
        if stop.number and not asked:
            asked = True
            print(f"asked to stop: saving a checkpoint, at most {grace:.0f} s (cluster.stop_grace)", flush=True)
            child.send_signal(signal.SIGTERM)
        if stop.again or (asked and time.monotonic() > stop.at + grace + MARGIN):
            print("not stopped in time: ended where it was, the checkpoint before counts", flush=True)
            child.kill()
            stop.again, stop.at = False, float("inf")
        time.sleep(_LOOK)


def _reap(wanted: int | None) -> int | None:
    """Takes the exit codes of all children that have ended; returns that of the wanted one, None while it runs."""
    found: int | None = None
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if process == 0:
            return found
        if process == wanted:
            found = os.waitstatus_to_exitcode(status)


def _tidy(seconds: float) -> None:
    """Ends what the child has left behind, after it has had some seconds to end by itself."""
    deadline = time.monotonic() + seconds
    while left := psutil.Process().children(recursive=True):
        if time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        _reap(None)
        time.sleep(_LOOK)


def _read(listen: int) -> bytes:
    """What the child has said since the last time; processes that it left may still hold the other end."""
    said = b""
    while select.select([listen], [], [], 0)[0]:
        part = os.read(listen, 65536)
        if not part:  # nobody is left who could say more
            break
        said += part
    return said


@contextmanager
def _stop_asked() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _prctl(option: int, value: int) -> None:
    """Linux's prctl(2). Raises OSError where the kernel refuses."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
