"""Ray clusters in namespaces of their own, where other clusters cannot be met or stopped.

A head has its own network and processes. Further nodes have their own as well, and an address on a bridge that the
head holds; no node sees another's shared memory, so that what goes from one to another goes by the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import wait_until

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# Without root, in a user namespace as well.
ISOLATED = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
if os.geteuid() != 0:
    ISOLATED.append("--map-root-user")
# Not by `exec`: the shell stays process 1, and waits for what has lost its parent, which Ray's head does not do.
RAY_START = "ray start --block --disable-usage-stats"
FETCH = """
import json, os, sys, urllib.error, urllib.request
def fetch(address):
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30).read()
    except urllib.error.HTTPError as error:
        return error.read()
print(json.dumps([json.loads(fetch(address)) for address in sys.argv[1:]]))
"""


@dataclass(frozen=True)
class Head:
    """A node that `ray start` started; the head, or another. Commands reach it from inside its namespaces only."""

    namespace: int  # the process that is number 1 inside: the child of `unshare`
    folder: Path  # of all that Ray writes
    variables: Mapping[str, str] = field(default_factory=dict)  # its environment, and that of what runs beside it

    def run(
        self, command: str, *, seconds: float, cwd: Path = REPOSITORY, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a shell command beside the node, with the environment's programs first on the path.

        Raises AssertionError, with the last of what it has said, where it takes longer.
        """
        try:
            return subprocess.run(
                self.inside(f"cd {shlex.quote(str(cwd))} && {command}"),
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
                stdin=subprocess.DEVNULL,
                env={**environment(), **self.variables, **(variables or {})},
            )
        except subprocess.TimeoutExpired as error:
            said = "".join(each.decode(errors="replace")[-9000:] for each in (error.stdout, error.stderr) if each)
            raise AssertionError(f"{command}: not within {seconds} s; it said: {said}") from None

    def fetch(self, *addresses: str) -> list[Any]:
        """What servers inside say, each as JSON."""
        done = self.run(f"python -c {shlex.join([FETCH, *addresses])}", seconds=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    def inside(self, command: str) -> list[str]:
        """The arguments that run a shell command in the node's namespaces."""
        enter = ["nsenter", "--target", str(self.namespace), "--net", "--pid", "--mount", "--"]
        return [*enter, "bash", "-c", command]

    def processes(self) -> list[str]:
        """The command lines of all processes that run inside; those of a node within it are not among them."""
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
    """This process's, without what concerns its own machine's network or cluster; both may be set in a test before."""
    own = ("RAY_", "GLOO_SOCKET_IFNAME", "VLLM_HOST_IP")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    variables |= {"PATH": f"{BIN}:{variables['PATH']}", "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}
    return variables


@contextlib.contextmanager
def isolated(
    command: list[str], log: Path, *, generations: int = 1, variables: Mapping[str, str] | None = None
) -> Iterator[Head]:
    """Starts `unshare` and gives the namespaces that it makes; they, and all that runs in them, end with the block.

    generations: how far the first process inside is from the one that is started here, 1 = its child.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**environment(), **(variables or {})},
        )

    def descendants() -> list[int]:
        """One of each generation, as far as there are any."""
        found = [process.pid]
        while children := Path(f"/proc/{found[-1]}/task/{found[-1]}/children").read_text().split():
            found.append(int(children[0]))
        return found[1:]

    try:
        wait_until(lambda: len(descendants()) >= generations, 30, "a namespace of its own")
        yield Head(namespace=descendants()[generations - 1], folder=log.parent / "ray", variables=variables or {})
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def head(
    options: str = "", *, before: str = "true", variables: Mapping[str, str] | None = None
) -> Iterator[tuple[Head, Path]]:
    """A head in namespaces of its own, and a folder for what belongs to it.

    options: of `ray start`; before: shell commands that come first inside; variables: more of its environment.
    """
    with tempfile.TemporaryDirectory(prefix="p1-", dir="/tmp", ignore_cleanup_errors=True) as name:
        start = f"ip link set lo up && {before} && {RAY_START} --head --temp-dir {name}/ray {options}; exit"
        with isolated([*ISOLATED, "bash", "-c", start], Path(name) / "head.log", variables=variables) as one:
            yield one, Path(name)


# ---------------------------------------------------------------------- several nodes, each with an address of its own

HEAD = "10.99.0.1"
# Most is for the weights on their way to vLLM; Ray's object store is told to take little.
SHARED_MEMORY = "mount -t tmpfs -o size=2g tmpfs /dev/shm"
NODE = "--num-cpus={} --object-store-memory=200000000 --node-ip-address={}"


@dataclass(frozen=True)
class Nodes:
    """A head on 10.99.0.1 and other nodes on 10.99.0.2, .3, ..."""

    head: Head
    others: dict[int, Head]  # by their numbers
    start: Callable[[int], Head]  # the node of a number, which is the last of its address

    def addresses(self) -> list[str]:
        """Of all nodes, the head's first."""
        return [HEAD, *map(_address, self.others)]

    def lose(self, number: int) -> None:
        """Ends one of the others with all that runs on it, as a machine that is switched off."""
        os.kill(self.others.pop(number).namespace, signal.SIGKILL)

    def add(self, number: int) -> Head:
        """Starts one more node; it joins in seconds."""
        self.others[number] = self.start(number)
        return self.others[number]

    def run(self, command: str, *, seconds: float) -> subprocess.CompletedProcess[str]:
        """Runs a shell command on the head, as a driver of this cluster."""
        return self.head.run(f"RAY_ADDRESS={HEAD}:6379 {command}", seconds=seconds)


@contextlib.contextmanager
def nodes(*, count: int, cpus: int) -> Iterator[Nodes]:
    """A cluster of so many nodes with so many CPUs each, the head among them."""
    bridge = f"ip link add p1 type bridge && ip addr add {HEAD}/24 dev p1 && ip link set p1 up && {SHARED_MEMORY}"
    options = f"--include-dashboard=false {NODE.format(cpus, HEAD)}"
    with head(options, before=bridge) as (first, folder), contextlib.ExitStack() as stack:
        wait_until(lambda: first.run(f"ray health-check --address={HEAD}:6379", seconds=60).returncode == 0, 300, "GCS")
        cluster = Nodes(
            head=first, others={}, start=lambda number: stack.enter_context(_node(first, number, cpus, folder))
        )
        for number in range(2, count + 1):
            cluster.add(number)
        alive = shlex.quote("import ray; ray.init(log_to_driver=False); print('alive', len(ray.nodes()))")
        wait_until(
            lambda: f"alive {count}" in cluster.run(f"python -c {alive}", seconds=60).stdout, 300, f"{count} nodes"
        )
        yield cluster


def _address(number: int) -> str:
    return HEAD.replace("0.1", f"0.{number}")


@contextlib.contextmanager
def _node(first: Head, number: int, cpus: int, folder: Path) -> Iterator[Head]:
    """One more node, in namespaces within the head's, with a cable to its bridge."""
    address = _address(number)
    start = (
        f"ip link set lo up && until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done && "
        f"ip addr add {address}/24 dev eth0 && ip link set eth0 up && {SHARED_MEMORY} && "
        f"mount -t tmpfs tmpfs {folder}/ray && "  # as on another machine: nothing of the head's is there
        f"{RAY_START} --address={HEAD}:6379 {NODE.format(cpus, address)}; exit"
    )
    unshare = f"exec {shlex.join(ISOLATED)} bash -c {shlex.quote(start)}"
    # nsenter itself stays outside; its child is `unshare`.
    with isolated(first.inside(unshare), folder / f"node-{number}.log", generations=2) as one:
        (line,) = (
            line for line in Path(f"/proc/{one.namespace}/status").read_text().splitlines() if line.startswith("NSpid")
        )
        seen_by_head = line.split()[-2]
        plugged = first.run(
            f"ip link add p1-{number} type veth peer name eth0 netns {seen_by_head} && "
            f"ip link set p1-{number} master p1 up",
            seconds=30,
        )
        assert plugged.returncode == 0, plugged.stderr
        yield one
