"""A run is one process's: real processes, real locks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pathor1 import alive
from pathor1.alive import alone
from pathor1.errors import RunError

HOLD = "import sys, time; from pathlib import Path; from pathor1.alive import alone\n"
HOLD += "with alone(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"


def holding(run: Path) -> subprocess.Popen[str]:
    """A process that has the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_that_is_alive_is_refused_and_one_that_was_killed_is_not(tmp_path: Path) -> None:
    run = tmp_path / "runs/mine"
    first = holding(run)
    try:
        with (
            pytest.raises(RunError, match=f"mine: this run is alive \\(process {first.pid} on ") as refused,
            alone(run),
        ):
            pass
        assert str(refused.value).endswith("stop that one first, or choose another name")
        with alone(tmp_path / "runs/other"):
            pass
    finally:
        first.kill()
        first.wait()
    with alone(run):  # the kernel knows that it is dead: nobody has to wait
        assert not run.exists(), "it makes no folder for a run that may never begin"
    assert not list(run.parent.iterdir())


def left_by_another_machine(run: Path) -> Path:
    path = run.parent / f".{run.name}.alive"
    path.write_text(json.dumps({"host": "node-7.elsewhere", "process": 7, "since": "then"}))
    return path


def test_another_machines_run_is_taken_over_when_it_shows_no_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(alive, "LOOK", 1.0)
    left_by_another_machine(tmp_path / "mine")
    with alone(tmp_path / "mine"):
        pass
    assert "was begun on node-7.elsewhere; looking for 1 s whether it still runs there" in capsys.readouterr().out


def test_another_machines_run_that_lives_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "LOOK", 20.0)
    path = left_by_another_machine(tmp_path / "mine")
    beat = threading.Timer(0.3, lambda: os.utime(path, (1.0, 1.0)))  # whatever that machine's clock says
    beat.start()
    with (
        pytest.raises(RunError, match=r"alive \(process 7 on node-7.elsewhere, since then\)"),
        alone(tmp_path / "mine"),
    ):
        pass
    beat.join()
    assert path.exists(), "it is the other's"


def test_whoever_has_a_run_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "BEAT", 0.05)
    with alone(tmp_path / "mine"):
        path = tmp_path / ".mine.alive"
        os.utime(path, (1.0, 1.0))
        beaten = threading.Event()
        for _ in range(100):
            if path.stat().st_mtime != 1.0:
                beaten.set()
                break
            threading.Event().wait(0.05)
        assert beaten.is_set()
