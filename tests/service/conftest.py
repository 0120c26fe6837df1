"""A Ray head in a network and process namespace of its own, where other clusters cannot be met or stopped."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import wait_until

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Without root, in a user namespace as well.
ISOLATED = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
if os.geteuid() != 0:
    ISOLATED.append("--map-root-user")


@dataclass(frozen=True)
class Head:
    """A head that `ray start --head` started. Commands reach it from inside its namespaces only."""

    process: subprocess.Popen[bytes]

    def run(self, command: str, *, seconds: float, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
        """Runs a shell command beside the head, with the environment's programs first on the path."""
        inside = ["nsenter", "--target", str(self.namespace), "--net", "--pid", "--mount", "--"]
        return subprocess.run(
            [*inside, "bash", "-c", f"cd {shlex.quote(str(cwd))} && {command}"],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )

    @property
    def namespace(self) -> int:
        """The process that is number 1 inside: the child of `unshare`."""
        return int(self.children()[0])

    def children(self) -> list[str]:
        """The processes that `unshare` has started: none, then one."""
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()

    def processes(self) -> list[str]:
        """The command lines of all processes that run inside."""
        inside = Path(f"/proc/{self.namespace}/ns/pid").readlink()
        found: list[str] = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (folder / "ns/pid").readlink() == inside:
                    found.append(
                        (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    )
        return [line for line in found if line]  # a zombie has none


def environment() -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables |= {"PATH": f"{BIN}:{variables['PATH']}", "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}
    return variables


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="p1-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        start = f"ip link set lo up && exec ray start --head --block --disable-usage-stats --temp-dir {folder}/ray"
        process = subprocess.Popen(
            [*ISOLATED, "bash", "-c", start],
            stdout=(Path(folder) / "head.log").open("wb"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
        try:
            one = Head(process=process)
            wait_until(lambda: bool(one.children()), 30, "a namespace of its own")
            wait_until(lambda: one.run("ray job list", seconds=60).returncode == 0, 120, "a Ray head that takes jobs")
            yield one
        finally:
            process.kill()  # its namespace, and all that runs in it, ends with it
            process.wait()
