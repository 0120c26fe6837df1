"""One process has a run: a second start of a run that is alive is refused.

The lock is a file beside the run's folder. On one machine, and on most shared file systems, `flock` decides; the kernel
gives it back when the process ends, however it ends. Where nodes do not see each other's locks, the file's time does:
whoever holds it touches it every few seconds, and another node looks for a while whether that goes on. No two clocks
are compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pathor1.errors import RunError

# Seconds between two signs of life, and for how long another node looks for one.
BEAT, LOOK = 4.0, 15.0
# What file systems without locks answer.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Holds the run in the folder `run`, which need not exist, for as long as the block lasts.

    Raises RunError where another process has it, on this machine or another.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.parent / f".{run.name}.alive"
    lock = _locked(path, run)
    try:
        _refuse_living(lock, path, run)
        os.ftruncate(lock, 0)
        owner = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%F %T %Z")}
        os.pwrite(lock, json.dumps(owner).encode(), 0)
        over = threading.Event()
        beating = threading.Thread(target=_beat, args=(lock, over), name="sign of life", daemon=True)
        beating.start()
        try:
            yield
        finally:
            over.set()
            beating.join()
            path.unlink(missing_ok=True)  # while it is held: who waits for it finds that it is gone, see `_locked`
    finally:
        os.close(lock)


def _locked(path: Path, run: Path) -> int:
    """The lock's file, open and locked. Raises RunError where another process has it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                owner = _owner(lock)
                os.close(lock)
                if isinstance(error, BlockingIOError):
                    raise RunError(_taken(run, owner)) from None
                raise
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)  # its owner has just removed it


def _refuse_living(lock: int, path: Path, run: Path) -> None:
    """Raises RunError where a process of another machine, whose lock is not seen from here, shows that it lives."""
    owner = _owner(lock)
    if not owner or owner.get("host") == socket.gethostname():
        return  # given back, or left by a process that the kernel knows to be dead
    print(f"{run}: was begun on {owner.get('host')}; looking for {LOOK:.0f} s whether it still runs there", flush=True)
    seen = path.stat().st_mtime_ns
    deadline = time.monotonic() + LOOK
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if path.stat().st_mtime_ns != seen:
            raise RunError(_taken(run, owner))


def _owner(lock: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(lock, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _taken(run: Path, owner: dict[str, Any]) -> str:
    who = f"process {owner['process']} on {owner['host']}, since {owner['since']}" if owner else "another process"
    return f"{run}: this run is alive ({who}); stop that one first, or choose another name"


def _beat(lock: int, over: threading.Event) -> None:
    while not over.wait(BEAT):
        os.utime(lock)
