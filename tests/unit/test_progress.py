"""How far something has come: lines in a log, a bar in a terminal."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import termios

from pathor1.evaluation import progress
from pathor1.evaluation.progress import Progress

CODE = """
from pathor1.evaluation.progress import Progress
progress = Progress("pages", total=40, what="items", done=10)
progress.told = "1.50 USD"
progress.add(10)
progress.add(20)
print("the end")
"""


def test_a_log_has_lines(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    counted = Progress("pages", total=40, what="items", done=10)
    for seconds in (4, 11, 12, 20):
        now[0] = seconds
        counted.told = f"{seconds} USD"
        counted.add(5)
    now[0] = 30
    counted.add(10)
    assert capsys.readouterr().out.splitlines() == [
        "pages: 20 of 40 items, 0.9 a second, 22 s left; 11 USD",
        "pages: 40 of 40 items, 1.0 a second; 20 USD",
    ]


def test_a_terminal_has_a_bar():
    reads, writes = os.openpty()
    termios.tcsetwinsize(writes, (24, 100))
    done = subprocess.run([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=writes, text=True, check=True)
    os.close(writes)
    shown = ""
    with contextlib.suppress(OSError):  # the end, where nobody writes any more
        while data := os.read(reads, 1 << 16):
            shown += data.decode()
    os.close(reads)
    assert done.stdout == "the end\n", "no lines beside the bar"
    assert "pages: " in shown
    assert "40/40" in shown
    assert "items/s" in shown
    assert "1.50 USD" in shown
