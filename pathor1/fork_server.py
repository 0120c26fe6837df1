"""A process that imports what a run's workers need, once, and forks them: they start at once, and share its memory.

A run on one machine starts some ten Python processes, and torch, transformers, verl and vLLM take each of them 5 to
13 s of CPU to import. Here one process imports them, while the run still looks at its data, and Ray's workers
(`runtime_env={"py_executable": ...}`) and what vLLM spawns from them (`multiprocessing.set_executable`) are forked:

    server -> attendant -> process    (this module, run by `python -m`)
    raylet -> launcher, which speaks with the attendant    (`pathor1.fork_launcher`)

The attendant waits for its process, tells the launcher how it ended, and ends it when the launcher is gone. The server
ends with the driver, whose child it is not: Ray stops a job by a signal to the driver and all of its descendants, and
the workers are to be there still when it writes its checkpoint. Whatever goes wrong before a process is forked, its
launcher starts it in the usual way.

A fork is safe as long as no other thread can hold a lock: the server has one thread, and has used none of its
libraries' thread pools. Where a library starts a thread when it is imported, the server ends instead of forking.
Ray's library reads variables, which a node sets for its workers, when it is loaded. What imports Ray is therefore
imported late: when the first process is asked for, and with its variables. It also makes the ids of tasks and objects
by a generator that is seeded at its first use: that must not be in the server, or two workers give different objects
the same id. `own_ids` keeps what decorates classes from using it, and `ids_differ` looks whether anything else has.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from pathor1 import fork_launcher

# Received files get numbers from here on, out of the way of those that they are to have.
FIRST_NUMBER = 512
MOST_FILES = 253  # that the kernel hands over in one message
LONGEST_PATH = 107  # bytes, of a socket
SAID = 30.0  # seconds that a launcher may take to say what it wants
DRIVER = 0  # the server's standard input: it ends with the driver
# pyarrow's allocator has a thread of its own, and stops it for a fork.
HARMLESS_THREADS = {"jemalloc_bg_thd"}
# What Ray's library, and Python, read once, and what differs between the nodes of one machine, or the jobs of one.
SETTLED = ("RAY_JOB_ID", "RAY_RAYLET_PID", "PYTHONPATH")
# The first to be imported of what imports Ray.
RAYS_ACTORS = "ray.actor"
_SET_PDEATHSIG = 1  # <linux/prctl.h>


@contextmanager
def fork_server(early: Sequence[str], late: Sequence[str], variables: Mapping[str, str]) -> Iterator[str]:
    """Starts a server, gives the path of the launcher, which stands in for a Python interpreter, and stops it.

    early, late: modules that it imports at once, and when it is first asked for a process. variables: of its
    environment, for what modules read when they are imported. Processes that live when the block is left, or when this
    process dies, are left alone. Gives the interpreter itself where the folder for temporary files is of no use.
    """
    folder = Path(tempfile.mkdtemp(prefix="pathor1-fork-"))
    path, launcher = folder / "socket", folder / "python"
    command = shlex.join([sys.executable, "-IS", fork_launcher.__file__, fork_launcher.machine(), str(path)])
    launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    launcher.chmod(0o700)
    if len(os.fsencode(path)) > LONGEST_PATH or not os.access(launcher, os.X_OK):  # a TMPDIR may be mounted noexec
        shutil.rmtree(folder)
        yield sys.executable
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, (folder / "log").open("wb") as log:
        listener.bind(str(path))
        listener.listen(64)  # before anything is imported: who comes early waits
        number = listener.fileno()
        server = subprocess.Popen(
            [sys.executable, "-u", "-m", __name__, str(number), str(folder), ",".join(early), ",".join(late)],
            # With more threads, libraries start them when they are imported. One is what Ray gives a worker of one CPU.
            # SPT_NOENV: what a process is called goes where its arguments were, and leaves its variables legible. It is
            # found before the first of them, which is therefore one that does not change.
            env={"SPT_NOENV": "1", **variables, **os.environ, "OMP_NUM_THREADS": "1"},
            pass_fds=(number,),
            stdin=subprocess.PIPE,  # by its end the server sees that we are gone
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the driver
        )
    try:
        yield str(launcher)
    finally:
        server.communicate()  # closes its standard input
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """The server: imports, and forks until the driver is gone."""
    number, folder, early, late = sys.argv[1:]
    if os.fork() > 0:
        os._exit(0)
    end_with_driver(folder)
    listener = socket.socket(fileno=int(number))
    gc.disable()  # what is imported stays, and looking through it again and again takes seconds
    made = import_all(early)
    settled: list[str | None] = []
    while DRIVER not in select.select([DRIVER, listener.fileno()], [], [])[0]:
        launcher, _ = listener.accept()
        request = receive(launcher)
        if request is not None:
            variables = request["environment"]
            if not settled and variables.get("PYTHONPATH") == os.environ.get("PYTHONPATH"):
                settled = [variables.get(name) for name in SETTLED]
                changed = {name: value for name, value in variables.items() if os.environ.get(name) != value}
                os.environ.update({**changed, "OMP_NUM_THREADS": "1"})
                made |= import_all(late)
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # attendants leave nothing to wait for
            if settled == [variables.get(name) for name in SETTLED] and os.fork() == 0:
                listener.close()
                attend(launcher, {**request, "environment": {**made, **variables}}, f"{folder}/python")
            for number in request["files"].values():
                os.close(number)
        launcher.close()
    end(folder)


def end_with_driver(folder: str) -> None:
    """Has this process end when the driver is gone, in the middle of an import, too."""
    signal.signal(signal.SIGIO, lambda *_: end(folder))
    fcntl.fcntl(DRIVER, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(DRIVER, fcntl.F_SETFL, fcntl.fcntl(DRIVER, fcntl.F_GETFL) | os.O_ASYNC)


def end(folder: str) -> NoReturn:
    """Ends the server."""
    shutil.rmtree(folder, ignore_errors=True)  # a driver that was killed could not do it
    os._exit(0)  # what was imported is not used here, and has nothing to end


def import_all(modules: str) -> dict[str, str]:
    """Imports modules, with commas between them, and returns the variables that they have set in the environment.

    Raises SystemExit where nothing can be forked afterwards.
    """
    before = dict(os.environ)
    for name in filter(None, modules.split(",")):
        importlib.import_module(name)
        if name == RAYS_ACTORS:
            own_ids()
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    if threads := {(task / "comm").read_text().strip() for task in tasks} - HARMLESS_THREADS:
        raise SystemExit(f"importing {modules} has started threads ({', '.join(threads)}): nothing can be forked")
    if "ray._raylet" in sys.modules and not ids_differ():
        raise SystemExit(f"importing {modules} has seeded Ray's generator of ids: nothing can be forked")
    gc.collect()
    gc.freeze()  # a collection writes to every object it looks at, and what is written to is shared no more
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def own_ids() -> None:
    """Has Ray draw the ids of classes that are made actors, which are drawn on import, from the kernel."""
    actor: Any = sys.modules[RAYS_ACTORS]
    made = actor.ActorClassID
    length = len(made.nil().binary())
    actor.ActorClassID = types.SimpleNamespace(from_random=lambda: made(os.urandom(length)))


def ids_differ() -> bool:
    """Whether processes that are forked from this one draw different ids."""
    drawn: list[bytes] = []
    for _ in range(2):
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(writing, sys.modules["ray._raylet"].UniqueID.from_random().binary())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            drawn.append(pipe.read())
        os.waitpid(pid, 0)
    return drawn[0] != drawn[1]


def receive(launcher: socket.socket) -> dict[str, Any] | None:
    """What a launcher asks for, see there, with "files": the number that each is to have -> the one it has here.

    None where the launcher is gone, or stops, before it has said all of it.
    """
    launcher.settimeout(SAID)
    try:
        launcher.sendall(b"!")
        said, received, _, _ = socket.recv_fds(launcher, 1, MOST_FILES)
    except OSError:
        return None
    if not said:
        return None
    with os.fdopen(received[0], encoding="utf-8") as text:
        text.seek(0)
        request: dict[str, Any] = json.load(text)
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_NUMBER) for number in received[1:]]
    for number in received[1:]:
        os.close(number)
    return {**request, "files": dict(zip(request["files"], moved, strict=True))}


def attend(launcher: socket.socket, request: dict[str, Any], python: str) -> NoReturn:
    """Forks the process, waits for its end, and ends it when its launcher is gone. python: what it spawns others by."""
    for number in (signal.SIGCHLD, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    attendant = os.getpid()
    pid = os.fork()
    if pid == 0:
        launcher.close()
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == attendant:
            become(request, python)
        sys.exit()
    for number in request["files"].values():
        os.close(number)
    ended = os.pidfd_open(pid)
    with contextlib.suppress(OSError):  # it may be gone
        launcher.sendall(b"%d" % pid)
        if ended not in select.select([ended, launcher.fileno()], [], [])[0]:
            os.kill(pid, signal.SIGKILL)  # whoever killed the launcher meant this one
        launcher.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def become(request: dict[str, Any], python: str) -> None:
    """Makes a process that was just forked the one that was asked for, and runs it."""
    first, *others = request["arguments"]
    for number, held in request["files"].items():
        os.dup2(held, number, inheritable=True)
        os.close(held)
    # Ray and vLLM name their processes. Each has its own setproctitle, the first of which to be used in a process finds
    # the place of its title, by the variables as they are now.
    if first == "-c":
        importlib.import_module("setproctitle").getproctitle()
    elif "ray._raylet" in sys.modules:
        sys.modules["ray._raylet"].getproctitle()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    try:  # Ray ends a worker by its group of processes, with what the worker has started
        os.setpgid(0, request["group"])
    except PermissionError:  # it is of another session, as that of Ray's own processes
        os.setpgid(0, 0)
    with contextlib.suppress(PermissionError):  # the server may be nicer, and only root may take that back
        os.setpriority(os.PRIO_PROCESS, 0, request["niceness"])
    if "numpy" in sys.modules:  # Python's own generator sees the fork by itself
        sys.modules["numpy"].random.seed()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if "torch" in sys.modules and threads.isdecimal():  # it looked when it was loaded
        sys.modules["torch"].set_num_threads(int(threads))
    gc.enable()
    multiprocessing.set_executable(python)
    if first == "-c":
        sys.argv = [first, *others[1:]]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(others[0], "<string>", "exec"), vars(module))
    else:
        sys.argv = [first, *others]
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
