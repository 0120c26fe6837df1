"""Joining a Ray cluster or starting one, with the environment that all processes of a run need."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pathor1.errors import RunError
from pathor1.fork_server import RAYS_ACTORS, fork_server

if TYPE_CHECKING:
    from pathor1.stage import RunRecipe

# Of processes that are to speak with their own machine alone.
STAYS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
LOOPBACK = {STAYS: "0", "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
OWN_TOKEN = "set RAY_AUTH_TOKEN_PATH, or RAY_AUTH_TOKEN, to the token that its head was started with"
HEAD = "set it to the HOST:6379 of a head (`ray start --head`), or unset it to start Ray on this machine"
# Seconds until a connection has to be there; and how often Ray tries to speak with a head, for half a minute each time.
CONNECTED, TRIES = 10.0, "2"
# Ray's: workers that a node starts before there is work. They have not the run's variables, so it uses none of them.
PRESTART = "RAY_prestart_worker_first_driver"
# What the workers of Ray Data import, see `pathor1.fork_server`.
RAYS_DATA = (RAYS_ACTORS, "ray.data", "pathor1.data.block_source")
# What Ray says of a cluster of another release: its Ray and Python, then this process's.
_MISMATCH = re.compile(r"Version mismatch.*?Ray: (\S+)\s+Python: (\S+).*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL)


def installed_accelerator() -> str:
    """ "cpu" or "gpu": what the installed torch was built for. Raises RunError where there is none."""
    built = _torch_version()
    return "cpu" if built["cuda"] is None and built["hip"] is None else "gpu"


def _torch_version() -> dict[str, Any]:
    """What torch's version.py says; importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RunError("torch is not installed; `pathor1 doctor` says what is missing")
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))


def choose_accelerator(recipe: RunRecipe) -> str:
    """ "cpu" or "gpu": what the recipe asks for, or what torch was built for. Raises RunError where they disagree."""
    found, wanted = installed_accelerator(), recipe.cluster.accelerator
    if wanted not in ("auto", found):
        version = _torch_version()["__version__"]
        raise RunError(
            f"cluster.accelerator is {wanted!r} and this environment's torch {version} is built for the {found}; "
            f"install pathor1[{wanted}] or set cluster.accelerator = 'auto'"
        )
    return found


def may_fork() -> bool:
    """Whether workers may be forked from what has imported their libraries: not where torch is one for a GPU."""
    return importlib.util.find_spec("torch") is None or installed_accelerator() == "cpu"


def joins_a_cluster() -> bool:
    """Whether `ray_cluster` would join a cluster that is there: that of a Ray job, or of `RAY_ADDRESS`."""
    return bool(os.environ.get("RAY_ADDRESS")) or bool(_jobs_environment())


@contextmanager
def imported_once(accelerator: str, *, early: Sequence[str], late: Sequence[str]) -> Iterator[str | None]:
    """Imports the modules that the workers of a run need once, for all of them; gives what `ray_cluster` needs for it.

    See `fork_server`. It is for the workers on this machine; those on a cluster's other nodes start in the usual way.
    None, and nothing is imported, on a GPU, whose libraries promise nothing to processes that are forked.
    """
    if accelerator == "gpu":
        yield None
        return
    with fork_server(early, late) as launcher:
        yield forked_by(launcher)


def forked_by(launcher: str | None) -> str | None:
    """What has a fork server's launcher start workers, for `ray_cluster`; None = no launcher.

    Another node has none, and takes the interpreter that it stands in for, or its own.
    """
    if launcher is None:
        return None
    return f'"$(command -v {shlex.quote(launcher)} || command -v {shlex.quote(sys.executable)} || echo python3)"'


def _jobs_environment() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {})
    return found


@contextmanager
def ray_cluster(
    environment: Mapping[str, str],
    *,
    object_store_gb: float | None = None,
    log_to_driver: bool = True,
    secrets: Sequence[str] = (),
    python: str | None = None,
) -> Iterator[None]:
    """Joins the Ray cluster of `RAY_ADDRESS` (in a Ray job: its own) or starts one, and leaves it or stops it again.

    environment: variables of all processes of the run; what is set already, for this process or the job, wins.
    object_store_gb: of a cluster that is started here, in 10^9 bytes; None = Ray's own choice.
    secrets: names of variables that this process and each node have to have already; RunError where one has not.
    python: what workers are started by, for a shell (`imported_once`); None = Ray's own choice, and on a CPU's own
    cluster what has imported Ray Data once for them.
    Within it, SIGTERM ends the process as an exception does, so that nothing is left behind. A cluster that is started
    here can be spoken to from this machine alone.
    """
    import ray

    if missing := [name for name in secrets if name not in os.environ]:
        raise RunError(_missing(missing, "this process"))
    in_job = _jobs_environment()
    # Ray refuses a variable that both the job and its driver set; the job's user set it on purpose.
    variables = {name: value for name, value in environment.items() if name not in in_job.get("env_vars", {})}
    variables |= {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address and not in_job:
        raise RunError(
            f"RAY_ADDRESS is {address}, which is for `ray job submit`; unset it, or set it to the head's HOST:6379"
        )
    joins = joins_a_cluster()
    started = ray.is_initialized()
    if address and not started:
        refuse_where_nobody_listens(address)
    if not joins and not started:
        variables = {**variables, **stay_on_this_machine()}
    with ExitStack() as stack:
        if not started:
            if not joins:
                os.environ.setdefault(PRESTART, "0")
                if python is None and may_fork():
                    python = stack.enter_context(imported_once("cpu", early=(), late=RAYS_DATA))
            start_ray(
                address="auto" if joins else "local",
                num_cpus=None if joins else max(os.cpu_count() or 1, 4),
                object_store_memory=None if joins or object_store_gb is None else int(object_store_gb * 1e9),
                runtime_env={"env_vars": variables} | ({} if python is None else {"py_executable": python}),
                log_to_driver=log_to_driver,
                logging_level="error",
                include_dashboard=None if joins else False,
            )
            stack.callback(ray.shutdown)
        previous = signal.signal(signal.SIGTERM, _terminate)  # after ray.init(), which installs its own
        stack.callback(signal.signal, signal.SIGTERM, previous)
        if joins:
            _check_secrets(secrets)
        yield


def refuse_where_nobody_listens(address: str) -> None:
    """Raises RunError for a RAY_ADDRESS that is none, and where no connection is taken: Ray tries for minutes."""
    if address in ("auto", "local"):  # Ray's own words
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise RunError(f"RAY_ADDRESS is {address}, which is no address; {HEAD}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTED).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"RAY_ADDRESS is {address}, and nobody listens there ({error}); {HEAD}") from None


def stay_on_this_machine() -> dict[str, str]:
    """Makes Ray that this process starts, and what runs on it, listen on the loopback alone; returns the variables.

    Ray on Linux listens on all interfaces; on macOS and Windows it does so only where its variable asks for it, which
    it reads everywhere. vLLM and Gloo look for an interface by themselves. What is set already wins.
    """
    from ray._private import ray_constants

    variables = {name: os.environ.get(name, value) for name, value in LOOPBACK.items()}
    os.environ.update(variables)
    # Ray reads its variable when it is imported, and it has been.
    ray_constants.ENABLE_RAY_CLUSTER = variables[STAYS] != "0"
    return variables


def start_ray(**options: Any) -> Any:
    """`ray.init(**options)`, tried again where a busy machine takes longer than the 30 s that Ray gives a node.

    Raises RunError where the cluster runs another release of Ray or Python, where it does not take the token, and where
    what listens at its address is no head.
    """
    import ray

    if options.get("address") == "auto":
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", TRIES)  # Ray's own is twenty times: twelve minutes
    attempts = 3
    while True:
        attempts -= 1
        try:
            return ray.init(**options)
        except Exception as error:  # Ray has no classes of its own for these
            if options.get("address") == "auto" and (line := _refusal(error)):
                raise RunError(line) from None
            if attempts == 0 or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def _refusal(error: Exception) -> str | None:
    """Why a cluster could not be joined, and what to do; None where Ray's error says something else."""
    if versions := _MISMATCH.search(str(error)):
        theirs, python, ours, our_python = versions.groups()
        return (
            f"the Ray cluster runs Ray {theirs} on Python {python}, and this process Ray {ours} on Python "
            f"{our_python}; install pathor1 with its lock, and one Python, on all nodes"
        )
    # AuthenticationError, or a cause that is "Unauthenticated".
    if "uthenticat" in f"{type(error).__name__} {error} {error.__cause__}":
        return (
            "the Ray cluster asks for a token and takes none that is set here, which may have expired; set "
            f"RAY_AUTH_MODE=token; {OWN_TOKEN}"
        )
    if isinstance(error, ConnectionError):
        return f"RAY_ADDRESS: what listens there is no Ray head ({error}); {HEAD}"
    return None


def _missing(names: Sequence[str], where: str) -> str:
    return (
        f"cluster.secrets: {', '.join(names)} not set in the environment of {where}; set it where `ray start` is run, "
        "or by a Secret of the pods: what is given to a job can be read in the dashboard"
    )


def _check_secrets(names: Sequence[str]) -> None:
    """Raises RunError where a node of the cluster has not one of these variables."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not names:
        return

    def missing() -> list[str]:
        return [name for name in names if name not in os.environ]

    task = ray.remote(num_cpus=0)(missing)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    on = [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes]
    for place, found in zip(nodes.values(), ray.get([each.remote() for each in on]), strict=True):
        if found:
            raise RunError(_missing(found, f"node {place}"))


def check_resources(kind: str, needed: int, what: str) -> None:
    """Raises RunError where the cluster has fewer than `needed` of "CPU" or "GPU".

    Ray itself would wait for nodes without end and without a word.
    """
    import ray

    found = ray.cluster_resources().get(kind, 0)
    if found < needed:
        raise RunError(f"{what} need {needed} {kind}s and the Ray cluster has {found:g}; ask for fewer, or add nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the Ray cluster. free, total: resource -> amount; "memory" is in bytes and only what Ray keeps book of.

    What is free is what no job, this one included, has taken.
    """

    id: str
    address: str
    free: Mapping[str, float]
    total: Mapping[str, float]


def nodes() -> list[Node]:
    """The nodes that are alive, as Ray sees them now."""
    import ray
    from ray._private.state import available_resources_per_node  # the public function adds all nodes up

    free = available_resources_per_node()
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            free=free.get(node["NodeID"], {}),
            total=node["Resources"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def refuse_second_run(*, wait: float = 0.0) -> None:
    """Raises RunError where another RL run uses this cluster: verl's queue would mix the rollouts of both.

    wait: seconds that it has to end, as the attempt before this one has, which Ray is still taking down.
    """
    import ray

    deadline = time.monotonic() + wait
    while True:
        try:
            ray.get_actor("TransferQueueController", namespace="transfer_queue")
        except ValueError:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    raise RunError("another RL run uses this Ray cluster, and verl's queue serves one; wait for it or start a cluster")


def _terminate(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
