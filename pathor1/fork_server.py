"""A process that imports what a run's workers need, once, and forks them: they start at once, and share its memory.

A run on one machine starts some ten Python processes, and torch, transformers, verl and vLLM take each of them 5 to
13 s of CPU to import. Here one process imports them, and Ray's workers (`runtime_env={"py_executable": ...}`) and what
vLLM spawns from them (`multiprocessing.set_executable`) are forked:

    server -> forker, one for each Ray node of this machine and each job -> attendant -> process
    raylet -> launcher, which speaks with the server, then with the attendant    (`pathor1.fork_launcher`)

The server is a process of its own (`fork_server`), or a fork of the driver, which then shares the imports, too
(`import_and_fork`). A forker imports what is to be imported with the variables of its node. The attendant waits for its
process, tells the launcher how it ended, and ends it when the launcher is gone. The server ends with the driver, whose
child it is not: Ray stops a job by a signal to the driver and all of its descendants, and the workers are to be there
still when it writes its checkpoint. Whatever goes wrong before a process is forked, its launcher starts it in the usual
way.

A fork is safe as long as no other thread can hold a lock: the server has one thread, and has used none of its
libraries' thread pools. Where a library starts a thread when it is imported, nothing is forked.
Ray's library reads variables, which a node sets for its workers, when it is loaded. What imports Ray is therefore
imported late: when a node's first process is asked for, and with its variables. It also makes the ids of tasks and
objects by a generator that is seeded at its first use: that must not be in a forker, or two workers give different
objects the same id. `own_ids` keeps what decorates classes from using it, and `ids_differ` looks whether anything else
has.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pathor1 import fork_launcher, heap, interpreter

# Received files get numbers from here on, out of the way of those that they are to have.
FIRST_NUMBER = 512
MOST_FILES = 253  # that the kernel hands over in one message
LONGEST_PATH = 107  # bytes, of a socket
WAITING = 64  # launchers that wait for their turn
SAID = 30.0  # seconds that a launcher may take to say what it wants
DRIVER = 0  # the server's standard input: it ends with the driver
# With more threads, libraries start them when they are imported. One is what Ray gives a worker of one CPU.
THREADS = "OMP_NUM_THREADS"
# What a process is called goes where its arguments were, and leaves its variables legible.
TITLES = {"SPT_NOENV": "1"}
# pyarrow's allocator has a thread of its own, and stops it for a fork.
HARMLESS_THREADS = {"jemalloc_bg_thd"}
# What Ray's library reads once, and what differs between the nodes of one machine, or the jobs of one.
SETTLED = ("RAY_JOB_ID", "RAY_RAYLET_PID")
# The first to be imported of what imports Ray.
RAYS_ACTORS = "ray.actor"
_SET_PDEATHSIG = 1  # <linux/prctl.h>
_ARGUMENTS_START, _ARGUMENTS_END = 45, 46  # of what /proc/PID/stat says behind the name, see proc(5)

# Of the server that this process has forked: its launcher, and what it lives by.
_own: list[tuple[str, int]] = []


class CannotForkError(Exception):
    """What was imported leaves a process that must not be forked; says why."""


def own_launcher() -> str | None:
    """The launcher of the server that this process has forked, None = it has not."""
    return _own[0][0] if _own else None


@contextmanager
def fork_server(early: Sequence[str], late: Sequence[str]) -> Iterator[str]:
    """Starts a server, gives the path of the launcher, which stands in for a Python interpreter, and stops it.

    early, late: modules that it imports at once, and when a node first asks for a process. Processes that live when the
    block is left, or when this process dies, are left alone. Gives the interpreter itself where the folder for
    temporary files is of no use.
    """
    place = _Place.made()
    if place is None:
        yield sys.executable
        return
    number = place.listener.fileno()
    with place.listener, (place.folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-u", "-m", __name__, str(number), str(place.folder), ",".join(early), ",".join(late)],
            # The place of titles is found before the first of the variables, which is therefore one that stays.
            env={**TITLES, **os.environ, THREADS: "1"},
            pass_fds=(number,),
            stdin=subprocess.PIPE,  # by its end the server sees that we are gone
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the driver
        )
        server.wait()  # until the server is nobody's child
    try:
        yield str(place.launcher)
    finally:
        server.communicate()  # closes its standard input
        shutil.rmtree(place.folder, ignore_errors=True)


def import_and_fork(early: Sequence[str], late: Sequence[str], variables: Mapping[str, str]) -> None:
    """Imports in this process, and forks a server from it, which `own_launcher` tells of: see `fork_server`.

    variables: of this process from now on, where they are not set, for what modules read when they are imported.
    To be called before anything else is done in this process, as the server has all that it has, and whatever leaves
    this function in a process that is forked has to end that. The server ends with this process.
    None is forked where that is not safe, and where the folder for temporary files is of no use.
    """
    threads = os.environ.get(THREADS)
    os.environ.update({name: value for name, value in variables.items() if name not in os.environ})
    os.environ[THREADS] = "1"
    gc.disable()
    try:
        made = import_all(early)
    except (CannotForkError, ImportError):  # who needs a package that is missing says so
        return
    finally:
        gc.freeze()
        gc.enable()
        os.environ.pop(THREADS)
        if threads is not None:
            os.environ[THREADS] = threads
    place = _Place.made()
    if place is None:
        return
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        if os.fork() > 0:
            os._exit(0)
        _become_server(place, reading)
        serve(place.listener, str(place.folder), late, made)
    os.waitpid(pid, 0)  # until the server is nobody's child
    os.close(reading)
    place.listener.close()
    _own.append((str(place.launcher), writing))


def _become_server(place: _Place, driver: int) -> None:
    """Makes a fork of the driver a process of its own, with nothing open of what the driver has open."""
    os.setsid()  # Ctrl-C is for the driver
    log = os.open(place.folder / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    for number, held in enumerate((driver, log, log)):
        os.dup2(held, number)
    for number in {int(file.name) for file in Path("/proc/self/fd").iterdir()} - {0, 1, 2, place.listener.fileno()}:
        with contextlib.suppress(OSError):  # that of the list itself
            os.close(number)
    os.environ.update({**TITLES, THREADS: "1"})
    end_with_driver(str(place.folder))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a server and its launchers meet."""

    folder: Path
    launcher: Path
    listener: socket.socket

    @classmethod
    def made(cls) -> _Place | None:
        """A new one; None where the folder for temporary files is of no use for it."""
        folder = Path(tempfile.mkdtemp(prefix="pathor1-fork-"))
        path, launcher = folder / "socket", folder / "python"
        command = shlex.join([sys.executable, "-IS", fork_launcher.__file__, fork_launcher.machine(), str(path)])
        launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        launcher.chmod(0o700)
        if len(os.fsencode(path)) > LONGEST_PATH or not os.access(launcher, os.X_OK):  # a TMPDIR may be mounted noexec
            shutil.rmtree(folder)
            return None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(path))
        listener.listen(WAITING)  # before anything is imported: who comes early waits
        return cls(folder=folder, launcher=launcher, listener=listener)


def main() -> None:
    """The server as a process of its own: imports, and forks until the driver is gone."""
    number, folder, early, late = sys.argv[1:]
    if os.fork() > 0:
        os._exit(0)
    end_with_driver(folder)
    gc.disable()  # what is imported stays, and looking through it again and again takes seconds
    try:
        made = import_all(_modules(early))
    except CannotForkError as error:
        raise SystemExit(str(error)) from None
    serve(socket.socket(fileno=int(number)), folder, _modules(late), made)


def _modules(joined: str) -> list[str]:
    return joined.split(",") if joined else []


def serve(listener: socket.socket, folder: str, late: Sequence[str], made: Mapping[str, str]) -> NoReturn:
    """Has processes forked, each by its node's forker, until the driver is gone. made: variables that imports set."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a forker leaves nothing to wait for
    if "setproctitle" in sys.modules:  # it finds the place of titles when it is first used: before anything is moved
        sys.modules["setproctitle"].getproctitle()
    own = call_this_process(b"pathor1.fork_server")
    forkers: dict[tuple[str | None, ...], socket.socket] = {}
    while DRIVER not in select.select([DRIVER, listener.fileno()], [], [])[0]:
        launcher, _ = listener.accept()
        files = receive(launcher)
        variables = read_request(files[0])["environment"] if files else {}
        if files and variables.get("PYTHONPATH") == os.environ.get("PYTHONPATH"):  # else it has other code
            settled = tuple(variables.get(name) for name in SETTLED)
            if settled not in forkers:
                forkers[settled], other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                if os.fork() == 0:
                    for each in (listener, launcher, *forkers.values()):
                        each.close()
                    close_all(files)
                    fork(other, late, made, variables, f"{folder}/python", own)
                other.close()
            with contextlib.suppress(OSError):  # the forker has ended: a process as any other
                socket.send_fds(forkers[settled], [b"!"], [launcher.fileno(), *files])
        close_all(files)
        launcher.close()
    end(folder)


def fork(
    server: socket.socket,
    late: Sequence[str],
    made: Mapping[str, str],
    variables: Mapping[str, str],
    python: str,
    own: bytes,
) -> NoReturn:
    """The forker of a node: imports what is to be imported with its variables, and forks until the server is gone.

    python: what its processes spawn others by; own: what `call_this_process` has written over.
    """
    end_with_parent()
    for number in (signal.SIGCHLD, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    # What is the same is left where it is: before the first of the variables libraries look for the place of titles.
    os.environ.update({name: value for name, value in variables.items() if os.environ.get(name) != value})
    os.environ[THREADS] = "1"
    made = {**made, **import_all(late)}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # attendants leave nothing to wait for
    while received := socket.recv_fds(server, 1, MOST_FILES)[1]:
        launcher, file, *files = received
        request = read_request(file)
        request["environment"] = {**made, **request["environment"]}
        if os.fork() == 0:
            server.close()
            os.close(file)
            request["files"] = dict(zip(request["files"], map(out_of_the_way, files), strict=True))
            attend(socket.socket(fileno=launcher), request, python, own)
        close_all(received)
    os._exit(0)


def end_with_driver(folder: str) -> None:
    """Has this process end when the driver is gone, in the middle of an import, too."""
    signal.signal(signal.SIGIO, lambda *_: end(folder))
    fcntl.fcntl(DRIVER, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(DRIVER, fcntl.F_SETFL, fcntl.fcntl(DRIVER, fcntl.F_GETFL) | os.O_ASYNC)


def end(folder: str) -> NoReturn:
    """Ends the server."""
    shutil.rmtree(folder, ignore_errors=True)  # a driver that was killed could not do it
    os._exit(0)  # what was imported is not used here, and has nothing to end


def end_with_parent() -> None:
    """Has the kernel kill this process when the one that has forked it is gone."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def call_this_process(name: bytes) -> bytes:
    """Writes over this process's arguments, for who lists processes, and returns them. They may be written back."""
    start, length = _arguments_place()
    before = ctypes.string_at(start, length)
    ctypes.memmove(start, name[:length].ljust(length, b"\0"), length)
    return before


def _arguments_place() -> tuple[int, int]:
    """The address of this process's arguments, and their length."""
    numbers = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    start, end = int(numbers[_ARGUMENTS_START]), int(numbers[_ARGUMENTS_END])
    return start, end - start


def import_all(modules: Sequence[str]) -> dict[str, str]:
    """Imports modules, and returns the variables that they have set in the environment.

    Raises CannotForkError where nothing can be forked afterwards.
    """
    before = dict(os.environ)
    for name in modules:
        importlib.import_module(name)
        if name == RAYS_ACTORS:
            own_ids()
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    if threads := {(task / "comm").read_text().strip() for task in tasks} - HARMLESS_THREADS:
        raise CannotForkError(f"importing {', '.join(modules)} has started threads ({', '.join(threads)})")
    if "ray._raylet" in sys.modules and not ids_differ():
        raise CannotForkError(f"importing {', '.join(modules)} has seeded Ray's generator of ids")
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


def receive(launcher: socket.socket) -> list[int]:
    """The files that a launcher hands over: its request, see there, and those that the process is to have.

    Empty where the launcher is gone, or stops, before it has said all of it.
    """
    launcher.settimeout(SAID)
    try:
        launcher.sendall(b"!")
        return socket.recv_fds(launcher, 1, MOST_FILES)[1]
    except OSError:
        return []
    finally:
        launcher.settimeout(None)


def read_request(file: int) -> dict[str, Any]:
    """What a launcher asks for, see there."""
    with os.fdopen(file, encoding="utf-8", closefd=False) as text:
        text.seek(0)
        request: dict[str, Any] = json.load(text)
    return request


def out_of_the_way(file: int) -> int:
    """The file under another number, which none is to have that a process is handed."""
    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, FIRST_NUMBER)
    os.close(file)
    return moved


def close_all(files: Iterable[int]) -> None:
    """Closes files, by their numbers."""
    for number in files:
        os.close(number)


def attend(launcher: socket.socket, request: dict[str, Any], python: str, own: bytes) -> NoReturn:
    """Forks the process, waits for its end, and ends it when its launcher is gone.

    request: as the launcher makes it, with "files": the number that each is to have -> the one it has here.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    attendant = os.getpid()
    pid = os.fork()
    if pid == 0:
        launcher.close()
        end_with_parent()
        if os.getppid() == attendant:
            ctypes.memmove(_arguments_place()[0], own, len(own))
            become(request, python)
        sys.exit()  # through all that is above it, and out of what was the server's or the driver's first step
    close_all(request["files"].values())
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
    heap.limit_heaps(os.environ.get(heap.HEAPS))
    os.chdir(request["folder"])
    try:  # Ray ends a worker by its group of processes, with what the worker has started
        os.setpgid(0, request["group"])
    except PermissionError:  # it is of another session, as that of Ray's own processes
        os.setpgid(0, 0)
    with contextlib.suppress(PermissionError):  # the server may be nicer, and only root may take that back
        os.setpriority(os.PRIO_PROCESS, 0, request["niceness"])
    if "numpy" in sys.modules:  # Python's own generator sees the fork by itself
        sys.modules["numpy"].random.seed()
    threads = os.environ.get(THREADS, "")
    if "torch" in sys.modules and threads.isdecimal():  # it looked when it was loaded
        sys.modules["torch"].set_num_threads(int(threads))
    gc.enable()
    interpreter.take_turns()
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
