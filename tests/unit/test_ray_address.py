"""A RAY_ADDRESS that leads nowhere: one line at once, where Ray itself tries for minutes."""

from __future__ import annotations

import importlib.util
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pathor1 import ray_cluster as ray_cluster_module
from pathor1.errors import RunError
from pathor1.ray_cluster import imported_once, may_fork, ray_cluster

WHAT_TO_DO = r"; set it to the HOST:6379 of a head \(`ray start --head`\), or unset it to start Ray on this machine$"


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "nowhere.invalid"])
def test_where_nobody_listens(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{host}:{unused_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        RunError, match=rf"^RAY_ADDRESS is {re.escape(address)}, and nobody listens there \(.*{WHAT_TO_DO}"
    ):
        ray_cluster({}).__enter__()


@pytest.mark.parametrize("address", ["127.0.0.1", ":6379", "host:ray", "127.0.0.1:99999999"])
def test_what_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match=rf"^RAY_ADDRESS is {re.escape(address)}, .*{WHAT_TO_DO}"):
        ray_cluster({}).__enter__()


def test_workers_are_started_by_the_launcher_where_it_is_and_by_python_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code = "import json; print(json.__name__)"
    with imported_once("cpu", early=["json"], late=[]) as python:
        (launcher,) = tmp_path.glob("*/python")
        run = ["bash", "-xc", f"exec {python} -c {shlex.quote(code)}"]  # as Ray does
        started = [subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)]
        launcher.unlink()
        started.append(subprocess.run(run, capture_output=True, text=True, timeout=60, check=True))
    assert [done.stdout for done in started] == ["json\n"] * 2
    by = [done.stderr.strip().splitlines()[-1].split()[:3] for done in started]
    assert by == [["+", "exec", str(launcher)], ["+", "exec", sys.executable]]


def test_workers_are_forked_without_torch_and_not_with_that_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster_module, "installed_accelerator", lambda: "gpu")
    assert not may_fork()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert may_fork(), "a command that needs no torch needs none for this"
