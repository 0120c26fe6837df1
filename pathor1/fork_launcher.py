"""Stands in for the Python of Ray's workers and of vLLM's engines: has the process made by `pathor1.fork_server`.

    python -IS fork_launcher.py MACHINE SOCKET ARGUMENT...

What the arguments ask for runs in a process that the server forks; this one waits for its end, hands on the signals it
gets, and ends as it ends. Where no server is ready, or it is another machine's, or what is asked for is no worker, it
becomes the interpreter that it stands in for. It runs before each worker, without `site`, so it imports little.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

WORKER = "default_worker.py"  # Ray's
SPAWNED = "--multiprocessing-fork"  # multiprocessing's, last of the arguments of a process by "spawn"
# Of an interpreter's own arguments those that the server has too, or that make no difference to a worker.
OPTIONS = ("-u", "-B", "-E", "-s", "-S", "-I")
# Seconds that the server may take to be ready. Ray gives a worker 60 to register, in whichever way it starts.
PATIENCE = 30.0
LOOK = 1.0  # seconds between two looks whether the parent is still there


def main() -> None:
    """Has the process of `sys.argv` forked, and ends as it ends."""
    of_server, socket_path, *arguments = sys.argv[1:]
    parent = os.getppid()
    asked = list(arguments)
    while asked and asked[0] in OPTIONS:
        del asked[0]
    is_worker = bool(asked) and (os.path.basename(asked[0]) == WORKER or (asked[0] == "-c" and asked[-1] == SPAWNED))
    server = _connect(socket_path) if is_worker and of_server == machine() else None
    pid = _ask(server, asked) if server is not None else None
    if server is None or pid is None:
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _: _kill(pid, caught))
    server.settimeout(LOOK)
    while os.getppid() == parent:  # without it, nobody would end the process
        try:
            status = server.recv(16)
        except TimeoutError:
            continue
        except OSError:  # it was killed
            status = b""
        _end_as(int(status or -signal.SIGKILL))
    # The server kills the process of a launcher that is gone.


def machine() -> str:
    """What processes see of each other, and of the network: a container on the same machine has others."""
    return " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net"))


def _connect(path: str) -> socket.socket | None:
    """The server's end of a connection, when it is ready to fork; None where it is not there, or takes too long."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.settimeout(PATIENCE)
    with contextlib.suppress(OSError):
        server.connect(path)
        if server.recv(1):
            server.settimeout(None)
            return server
    server.close()
    return None


def _ask(server: socket.socket, arguments: list[str]) -> int | None:
    """Sends what a process is made of and the files that are open here; the id of the process, None = there is none."""
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    files = [number for number in listed if number != server.fileno() and os.path.exists(f"/proc/self/fd/{number}")]
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "group": os.getpgrp(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "files": files,
    }
    with open(os.memfd_create("request"), "w+", encoding="utf-8") as text:
        json.dump(request, text)
        text.flush()
        try:
            socket.send_fds(server, [b"!"], [text.fileno(), *files])
            return int(server.recv(16) or 0) or None
        except OSError:
            return None


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_as(status: int) -> None:
    """Ends by an exit code, or by the signal whose negative it is."""
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(abs(status))


if __name__ == "__main__":
    main()
