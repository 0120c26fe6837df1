"""A Ray head of one's own on this machine: on free ports, beside any other cluster, and gone afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathor1.errors import RunError
from pathor1.ray_cluster import LOOPBACK, PRESTART

# Seconds that a head may take on a busy machine, and that it may take to end.
STARTED, ENDED = 180, 30


@contextmanager
def own_head(cpus: int) -> Iterator[str]:
    """Starts a head with so many CPUs, gives the address that jobs are submitted to, and stops it.

    It listens on the loopback alone. It is started by `ray start`, as `ray.init` gives its agent a fixed port, which
    another cluster may have. Its files are removed where the block ends well, and kept for their logs where it does
    not. Raises RunError where it does not start.
    """
    # A folder of its own, short, as sockets have paths of 107 bytes: a job finds its cluster by a file in it.
    folder = Path(tempfile.mkdtemp(prefix="pathor1-"))
    # Whoever can submit a job can run anything: on a machine with other users that needs a token.
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    port, client_port = _free_ports(2)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--port=0", "--dashboard-agent-listen-port=0", f"--dashboard-port={port}"]
    command += [f"--ray-client-server-port={client_port}", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
    environment = {**LOOPBACK, PRESTART: "0", **os.environ}
    environment.pop("RAY_ADDRESS", None)
    log = folder / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(head, address, log)
        yield address
    finally:
        head.terminate()
        try:
            head.wait(ENDED)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _wait(head: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Until the head takes jobs."""
    from pathor1.service.connection import connect  # Ray reads the head's token when it is imported

    deadline = time.monotonic() + STARTED
    while True:
        try:
            connect(address).list_jobs()
        except RunError:
            if head.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise RunError(f"a Ray head did not start; {log} ends with: {lines[-1] if lines else ''}") from None
            time.sleep(0.5)
        else:
            return


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on just now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()
