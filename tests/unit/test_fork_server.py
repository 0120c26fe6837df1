"""Processes forked from one that has the imports: by a worker's script, as Ray does, and by multiprocessing's spawn."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import running, wait_until

from pathor1.fork_server import RAYS_ACTORS, fork_server

IMPORTED = """
import os
import numpy
os.environ.setdefault("OF_THE_IMPORT", "3")
BY = os.getpid()
"""
WORKER = """
import json, os, sys
import numpy
if __name__ == "__main__":
    imported = sys.modules.get("imported")
    print(json.dumps({
        "imported_by": imported and imported.BY,
        "pid": os.getpid(),
        "arguments": sys.argv[1:],
        "first_on_path": sys.path[0],
        "folder": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "variables": [os.environ.get(name) for name in ("OF_THE_SERVER", "OF_THE_WORKER", "OF_THE_IMPORT")],
        "group": os.getpgrp(),
        "drawn": numpy.random.rand(),
        "handed_over": os.read(int(sys.argv[1]), 100).decode(),
        "open": sorted(os.listdir("/proc/self/fd")),
    }), flush=True)
    sys.exit(7)
"""
PARENT = """
import multiprocessing, os, sys
def child(answers):
    import setproctitle
    setproctitle.setproctitle("title")
    answers.put((os.getpgrp(), "imported" in sys.modules, open("/proc/self/cmdline").read().strip("\\0 ")))
if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    spawn.Process(target=child, args=(answers,)).start()
    print(os.getpgrp(), *answers.get())
"""
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
SPAWN = """
import multiprocessing, sys, time
from pathor1.fork_server import fork_server
def work(started, seconds):
    started.put("imported" in sys.modules)
    time.sleep(seconds)
if __name__ == "__main__":
    with fork_server([], ["imported"]) as python:
        multiprocessing.set_executable(python)
        spawn = multiprocessing.get_context("spawn")
        started = spawn.Queue()
        ends, terminated, killed = (spawn.Process(target=work, args=(started, seconds)) for seconds in (0, 600, 600))
        for process in (ends, terminated, killed):
            process.start()
            print(started.get())
        ends.join()
        terminated.terminate()
        killed.kill()
        for process in (terminated, killed):
            process.join()
        print(ends.exitcode, terminated.exitcode, killed.exitcode)
"""
FORKING = """
import os, sys, subprocess
from pathor1.fork_server import import_and_fork, own_launcher
opened = open(os.devnull)
import_and_fork(["imported"], [], {"OF_THE_SERVER": "1"})
print(os.getpid(), os.environ.get("OF_THE_SERVER"), os.environ.get("OMP_NUM_THREADS"), flush=True)
for _ in range(2):
    subprocess.run([own_launcher(), *sys.argv[1:]])
print("driver", flush=True)
"""
DRIVER = """
import subprocess, sys
from pathor1.fork_server import fork_server
with fork_server([], ["imported"]) as python:
    subprocess.run([python, *sys.argv[1:]])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules and scripts, on the path of every process that is started."""
    for name, text in (("imported", IMPORTED), ("spawn", SPAWN), ("driver", DRIVER), ("forking", FORKING)):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker/default_worker.py").write_text(WORKER)
    (tmp_path / "sleeper").mkdir()
    (tmp_path / "sleeper/default_worker.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("OF_THE_SERVER", "1")
    with fork_server([], ["imported"]) as launcher:
        monkeypatch.delenv("OF_THE_SERVER")
        yield launcher


def run_worker(python: str, folder: Path, *, before: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the worker's script as Ray does, in a folder and with a variable and a pipe of its own.

    before: words of a command that runs the rest of its arguments.
    """
    reading, writing = os.pipe()
    os.write(writing, b"through a pipe")
    os.close(writing)
    script = folder / "worker/default_worker.py"
    done = subprocess.run(
        [*before, python, "-u", script, str(reading), "--flag"],
        cwd=folder / "worker",
        env={**os.environ, "OF_THE_WORKER": "2"},
        pass_fds=(reading,),
        preexec_fn=lambda: os.nice(3) and None,
        stdout=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(reading)
    assert done.returncode == 7, "a launcher ends as its worker does"
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["arguments"] == [str(reading), "--flag"]
    return said


def test_a_worker_has_the_servers_imports_and_all_else_of_its_own(python: str, folder: Path) -> None:
    first, second, plain = (run_worker(one, folder) for one in (python, python, sys.executable))
    assert plain["imported_by"] is None
    assert first["imported_by"] == second["imported_by"] != first["pid"], "imported once, by the server"
    assert first["pid"] != second["pid"]
    for said in (first, second):
        assert said["variables"] == [None, "2", "3"], "what its imports set is set"
        assert said["handed_over"] == "through a pipe"
        assert said["folder"] == said["first_on_path"] == str(folder / "worker")
        assert said["niceness"] == min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)
        assert said["group"] == said["pid"], "Ray ends a worker by its group, which is nobody else's"
    assert first["drawn"] != second["drawn"], "numpy's generator is not the server's"
    assert first["open"] == second["open"] == plain["open"], "nothing of the server's stays open in a worker"


def test_what_multiprocessing_spawns_is_forked_and_ends_as_it_is_ended(folder: Path) -> None:
    with running(["spawn"], folder / "log") as command:
        assert command.finish(60) == 0, command.output()
        assert f"True\nTrue\nTrue\n0 {-signal.SIGTERM} {-signal.SIGKILL}\n" in command.output()
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")


def test_what_a_worker_spawns_is_forked_into_its_group_and_may_have_a_title(python: str, folder: Path) -> None:
    (folder / "worker/default_worker.py").write_text(PARENT)
    done = subprocess.run([python, folder / "worker/default_worker.py"], stdout=subprocess.PIPE, check=True, timeout=60)
    group, childs_group, imported, title = done.stdout.split()
    assert (childs_group, imported, title) == (group, b"True", b"title")


def test_a_driver_shares_its_imports_with_a_server_that_it_forks(folder: Path) -> None:
    (folder / "worker/default_worker.py").write_text(WORKER.replace("int(sys.argv[1])", "os.open('/dev/null', 0)"))
    with running(["forking", str(folder / "worker/default_worker.py")], folder / "log") as command:
        assert command.finish(60) == 0, command.output()
        first, *workers, last = command.output().splitlines()
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")
    pid, of_server, threads = first.split()
    assert int(pid) == command.process.pid
    assert (of_server, threads) == ("1", str(os.environ.get("OMP_NUM_THREADS"))), "one thread is for the import alone"
    assert last == "driver"
    said = [json.loads(line) for line in workers]
    assert [worker["imported_by"] for worker in said] == [int(pid)] * 2
    assert len({worker["pid"] for worker in said} | {int(pid)}) == 3
    assert said[0]["drawn"] != said[1]["drawn"]
    # Three of each process, the one that is opened here, and that of the list.
    assert [worker["open"] for worker in said] == [["0", "1", "2", "3", "4"]] * 2, "nothing of the driver's stays open"


@pytest.mark.parametrize("driver", ["driver", "forking"])
def test_nothing_stays_behind_a_driver_that_is_killed(folder: Path, driver: str) -> None:
    with running([driver, str(folder / "sleeper/default_worker.py")], folder / "log") as command:
        command.wait_for("up", 60)
        command.kill()
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")


def test_who_signals_the_driver_and_its_descendants_leaves_the_workers_alone(python: str, folder: Path) -> None:
    asked = [python, folder / "sleeper/default_worker.py"]
    zombies = [each for each in psutil.Process().children() if each.status() == psutil.STATUS_ZOMBIE]
    assert not [each.pid for each in zombies], "a server that has left its driver leaves nothing behind in it"
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "up\n"
            descendants = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
        finally:
            worker.kill()
    assert any("pathor1/fork_launcher.py" in line for line in descendants), "Ray's raylet is its parent"
    assert not [line for line in descendants if "pathor1.fork_server" in line]


def test_a_worker_has_the_threads_that_its_own_environment_gives_it(folder: Path) -> None:
    script = folder / "worker/default_worker.py"
    script.write_text("import torch; print(torch.get_num_threads())")
    with fork_server(["torch"], []) as launcher:
        for threads in ("3", "1"):
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            done = subprocess.run([launcher, script], env=environment, stdout=subprocess.PIPE, check=True)
            assert done.stdout.decode() == f"{threads}\n"


HEAPS = """
import ctypes, threading
libc = ctypes.CDLL(None)
both = threading.Barrier(2)
def take():
    bytearray(100_000)
    both.wait()
threads = [threading.Thread(target=take) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_worker_has_as_many_heaps_as_its_own_environment_says(folder: Path) -> None:
    script = folder / "worker/default_worker.py"
    script.write_text(HEAPS)
    found = []
    with fork_server([], []) as launcher:
        for heaps in ({}, {"MALLOC_ARENA_MAX": "1"}):
            environment = {**os.environ, **heaps}
            done = subprocess.run([launcher, script], env=environment, stdout=subprocess.PIPE, check=True)
            found.append(done.stdout.decode().count("<heap nr="))
    assert found == [3, 1]


@pytest.mark.parametrize("modules", [(["imported"], []), ([], ["imported"])], ids=["early", "late"])
def test_a_server_with_threads_does_not_fork(folder: Path, modules: tuple[list[str], list[str]]) -> None:
    text = IMPORTED + "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    (folder / "imported.py").write_text(text)
    with fork_server(*modules) as launcher:
        assert run_worker(launcher, folder)["imported_by"] is None, "a process as any other"
        assert "has started threads" in Path(launcher).with_name("log").read_text()


def test_workers_draw_ids_of_their_own_or_are_not_forked(folder: Path) -> None:
    """Ray's library draws the ids of a thread's tasks by a generator that a fork would copy."""
    script = folder / "worker/default_worker.py"
    script.write_text("import ray, sys; print('ray.data' in sys.modules, ray.UniqueID.from_random().hex())")
    for late, forked in (([RAYS_ACTORS, "ray.data"], "True"), (["ray.data"], "False")):
        with fork_server([], late) as launcher:
            said = [subprocess.check_output([launcher, script], text=True, timeout=60).split() for _ in range(2)]
            assert [first for first, _ in said] == [forked, forked]
            assert said[0] != said[1]


def test_each_node_and_job_has_imports_of_its_own(python: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's library settles on what it is first imported with."""
    by = []
    for job, raylet in (("01", "7"), ("02", "7"), ("01", "8"), ("01", "7")):
        monkeypatch.setenv("RAY_JOB_ID", job)
        monkeypatch.setenv("RAY_RAYLET_PID", raylet)
        by.append(run_worker(python, folder)["imported_by"])
    assert None not in by
    assert len(set(by)) == 3
    assert by[0] == by[3]


def test_a_process_of_another_container_is_not_forked(python: str, folder: Path) -> None:
    for number in range(2):
        elsewhere = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        assert run_worker(python, folder, before=elsewhere)["imported_by"] is None, f"time {number}"
        assert run_worker(python, folder)["imported_by"] is not None


def test_a_process_with_other_code_is_not_forked(python: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", f"{folder / 'worker'}:{folder}")
            assert run_worker(python, folder)["imported_by"] is None, f"time {number}"
        assert run_worker(python, folder)["imported_by"] is not None


def test_what_is_no_worker_is_run_by_the_interpreter_itself(python: str) -> None:
    asked = [python, "-c", "import os, sys; print('imported' in sys.modules, os.getpid(), sys.executable)"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=60)
    assert output.split() == ["False", str(process.pid), sys.executable]
