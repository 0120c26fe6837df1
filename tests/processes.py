"""Commands as real processes that a test can follow, kill, and look behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

# In the environment of a process and of all it starts, however they detach: what is left behind still bears it.
MARKER = "PATHOR1_TEST_PROCESS"
# Ray and vLLM give their processes titles: not over the variables, in which the marker is.
LEGIBLE = {"SPT_NOENV": "1"}
PYTHON = (sys.executable, "-m")


class Command:
    """A running `python -m ...`, or another program; its output goes to a file."""

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        environment: dict[str, str] | None = None,
        program: Sequence[str] = PYTHON,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.log = log
        variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*program, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**variables, **LEGIBLE, "PYTHONUNBUFFERED": "1", MARKER: self.mark, **(environment or {})},
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, seconds: float) -> None:
        """Waits until the output holds `text`; fails with its end when the command ends or time runs out before."""
        wait_until(lambda: text in self.output() or self.process.poll() is not None, seconds, f"{text!r} in the output")
        assert text in self.output(), f"ended with {self.process.returncode} before {text!r}:\n{self.output()[-3000:]}"

    def finish(self, seconds: float) -> int:
        """Waits for the end and returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:.0f} s:\n{self.output()[-3000:]}") from None

    def kill(self) -> None:
        """SIGKILL to the command itself and nothing else, as the kernel's out-of-memory killer does."""
        self.process.kill()
        self.process.wait()

    def kill_one(self, part: str) -> None:
        """SIGKILL to the process of it whose title holds `part`; one that does something else is called after that."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [process for process, line in self.processes() if part in line]
            return bool(found)

        wait_until(look, 60, f"{part} among the processes")
        os.kill(found[0], signal.SIGKILL)

    def left_behind(self) -> list[str]:
        """The command lines of living processes that this command started, itself included."""
        return [line for _, line in self.processes()]

    def listening(self) -> set[str]:
        """The addresses that its processes take connections at: "127.0.0.1", "0.0.0.0" or "::" for all of a machine."""
        found: set[str] = set()
        for process, _ in self.processes():
            with contextlib.suppress(psutil.Error):
                sockets = psutil.Process(process).net_connections("inet")
                found.update(each.laddr.ip.removeprefix("::ffff:") for each in sockets if each.status == "LISTEN")
        return found

    def processes(self) -> list[tuple[int, str]]:
        """Process id and command line of each of them."""
        return list(marked(self.mark))


def marked(mark: str) -> Iterator[tuple[int, str]]:
    """Process id and command line of every living process whose environment bears the mark."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARKER}={mark}".encode() in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if line:  # a zombie has none
                    yield int(folder.name), line


@contextlib.contextmanager
def running(
    arguments: list[str], log: Path, environment: dict[str, str] | None = None, program: Sequence[str] = PYTHON
) -> Iterator[Command]:
    """A command that is over, with all it has started, when the block is left."""
    command = Command(arguments, log, environment, program)
    try:
        yield command
    finally:
        for process, _ in command.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        command.process.wait()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for a condition, in small steps."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)
