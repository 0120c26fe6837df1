"""An attempt at an RL run as a process: what it imports before it forks, and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENDS = """
import atexit, sys, threading, time
from pathor1.attempt import end_with
atexit.register(print, "tidied up")
threading.Thread(target=time.sleep, args=(600,)).start()
def main():
    print("done", end="")
    {how}
end_with(main)
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("return 0", 0, ""),
        ("return 2", 2, ""),
        ("sys.exit(143)", 143, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('pathor1: no')", 1, "pathor1: no\n"),
    ],
)
def test_it_ends_as_python_does_but_waits_for_no_thread(how: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(how=how)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "donetidied up\n", said)


def test_an_error_that_nobody_expected_is_shown() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(how="raise ValueError('odd')")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: odd\n")


def test_nothing_that_starts_threads_is_imported_before_the_fork() -> None:
    looked = "import os, sys, pathor1.attempt; print(len(os.listdir('/proc/self/task')), 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", looked], text=True) == "1 False\n"
