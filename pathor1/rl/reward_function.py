"""A reward function of one's own in the place of the accuracy rule: found, checked, and run where it can do no harm.

It runs in a process of its own with a time limit for each call. One that raises, returns no number from 0 to 1, or does
not return, has no value: whoever asked hears why. It never counts as 0.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pathor1.errors import RecipeError

if TYPE_CHECKING:
    from pathor1.samples import Sample

# Seconds that its module may take to be imported.
LOADED = 120.0
KEY = "rl.reward.function"
# What a function is tried with before a run starts.
KNOWN_TEXT = "<think>The nuclei are round and regular.</think><answer>{answer}</answer>"


class RewardFailed(Exception):  # noqa: N818 (of one rollout, not of the program: its group is dropped)
    """The function has no value for an answer. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A function as it travels to the nodes. source: a file's text; None where `module` is imported there."""

    spec: str  # as the recipe has it
    module: str  # its name, or the path of the file
    name: str
    source: str | None
    seconds: float  # that a call may take


def load(spec: str, seconds: float, *, kept: Path | None = None) -> Program:
    """What a recipe names: "module:name" or "path/to/file.py:name".

    kept: the copy of an earlier start of the run, which counts where it is there. Raises RecipeError for a file that
    cannot be read.
    """
    module, _, name = spec.rpartition(":")
    source = None
    if module.endswith(".py"):
        path = kept if kept is not None and kept.exists() else Path(module)
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise RecipeError(f'{KEY} = "{spec}": {path}: {why}') from error
    return Program(spec=spec, module=module, name=name, source=source, seconds=seconds)


def fields(sample: Sample) -> dict[str, Any]:
    """What a function is told of a sample: all but its pictures."""
    told = asdict(sample)
    del told["images"]
    return told


class RewardFunction:
    """A function in a process of its own, which is started when it is needed and anew when it is gone.

    One call at a time. The process ends with this one, and with `close`.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, text: str, answer: str, sample: Mapping[str, Any]) -> float:
        """A number from 0 to 1. Raises RewardFailed."""
        if self._process is None:
            self._start()
        return self._ask({"text": text, "answer": answer, "sample": dict(sample)}, self.program.seconds)

    def check(self, sample: Mapping[str, Any]) -> None:
        """Raises RecipeError where it cannot be imported or has no value for a right answer to this sample."""
        text = KNOWN_TEXT.format(answer=sample["answer"])
        try:
            self(text, sample["answer"], sample)
        except RewardFailed as error:
            raise RecipeError(f"{KEY}: {error}; it was tried with {text!r} for sample {sample['id']}") from error

    def close(self) -> None:
        """Ends the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            _kill(process)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # what could not be written is of no use any more
                    pipe.close()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pathor1.rl.reward_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What this process can import, the function can, wherever Ray has put it.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # so that what it starts itself ends with it
        )
        program = self.program
        try:
            self._ask({"module": program.module, "source": program.source, "name": program.name}, LOADED)
        except RewardFailed:
            self.close()
            raise

    def _ask(self, message: Mapping[str, Any], seconds: float) -> float:
        """Sends a line and waits for one, so many seconds at most."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(seconds, give_up)
        timer.start()
        try:
            process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it ended before it had read the message
            line = b""
        finally:
            timer.cancel()
        if line and not late.is_set():
            said = json.loads(line)
            if "error" in said:
                raise RewardFailed(f"{self.program.spec} {said['error']}")
            return float(said["value"])
        if not late.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)  # it has closed its end, and is about to end
        self.close()
        if late.is_set():
            raise RewardFailed(f"{self.program.spec} has not returned within {seconds:g} s ({KEY}_timeout)")
        raise RewardFailed(f"{self.program.spec} ended its process (exit code {process.returncode})")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
