"""Looks after a run while it waits: a process of it that has died, and a phase that takes far longer than usual.

verl and Ray wait without a limit, and not all of their waits end when the process that is waited for does. A thread of
the driver looks every few seconds. What it finds ends the run with a reason; `pathor1.attempts` starts it again.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pathor1 import attempts
from pathor1.rl import faults

LOOK = 2.0  # seconds between two looks
# The actors that a run cannot do without, by their class, and what they are.
PARTS = {
    "WorkerDict": "training rank",
    "QuestionGroupServer": "vLLM server",
    "CheckpointEngineWorker": "receiver of vLLM's weights",
    "QuestionGroupWorker": "agent",
    "TransferQueueController": "queue",
    "SimpleStorageUnit": "queue's storage",
}
TRAINING, GENERATING = ("WorkerDict",), ("QuestionGroupServer", "QuestionGroupWorker")
# Who is waited for in a phase; in the others, the ranks.
WAITED_FOR = {
    "start": tuple(PARTS),
    "generation": GENERATING,
    "evaluation": GENERATING,
    "weights to vLLM": TRAINING + GENERATING[:1],
    "record": (),
}
# A phase is told of when it takes so many times as long as usual, and at least so many seconds; and when there is no
# usual yet, after so many seconds. It is a hang, beyond cluster.hang_after, when it takes so many times as long.
SLOW, SLOW_SECONDS, SLOW_AT_FIRST, HUNG = 5, 60.0, 300.0, 10
# Seconds within which Ray finds that a node is lost: it asks every 3 s, waits 10 s, and believes it at the fifth time
# (RAY_health_check_period_ms, _timeout_ms and _failure_threshold of the head).
NODE_LOST = 70.0
# Seconds that the main thread has to fail by itself, and to leave Ray, when something is found.
END_BY_ITSELF = 20.0


class Health:
    """One run's. hang_after: seconds, the recipe's cluster.hang_after."""

    def __init__(self, *, hang_after: float) -> None:
        self.hang_after = hang_after
        self.reason: str | None = None
        self.current, self._since, self._tell_at = "start", time.monotonic(), SLOW_AT_FIRST
        self._seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=20))
        self._servers: Sequence[Any] = ()
        self._asked: dict[ray.ObjectRef[bool], int] = {}
        self._main = threading.get_ident()
        self._found, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="health", daemon=True)

    def start(self) -> None:
        """Begins to look, in a cluster that is joined."""
        self._job = ray.get_runtime_context().get_job_id()
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._over.set()
        self._thread.join(LOOK)

    def phase(self, name: str) -> None:
        """The run is in another phase from now on."""
        now = time.monotonic()
        self._seconds[self.current].append(now - self._since)
        usual = self._usual(name)
        self._tell_at = SLOW_AT_FIRST if usual is None else max(SLOW_SECONDS, SLOW * usual)
        self.current, self._since = name, now

    def engines(self, servers: Sequence[Any]) -> None:
        """vLLM's servers (Ray actors), whose engines are processes of their own and die without them."""
        self._servers = servers

    def explain(self, error: BaseException) -> str | None:
        """Why the run has failed of this error, in one line, where something of it has died.

        Waits a few looks for that, and for what does not answer as long as Ray may take to find that its node is lost.
        """
        self._found.wait(NODE_LOST if faults.is_gone(error) else 3 * LOOK)
        return self.reason

    def _look_after(self) -> None:
        while not self._over.wait(LOOK):
            reason = self._dead() or self._dead_engine() or self._slow()
            if self._over.is_set():  # a run that is done ends its own actors
                return
            if reason is not None:
                self.reason = reason
                self._found.set()
                attempts.end_within(END_BY_ITSELF, reason)
                return

    def _dead(self) -> str | None:
        dead = self._actors("DEAD")
        for actor in dead:  # first: each process of a lost node is dead as well
            context = actor["DeathCause"].actor_died_error_context
            if context.reason == context.NODE_DIED:
                why = " ".join(context.node_death_info.reason_message.split())
                return f"node {actor['Address']['IPAddress']} of the Ray cluster is lost{why and f': {why[:300]}'}"
        for actor in dead:
            context = actor["DeathCause"].actor_died_error_context
            why = " ".join(context.error_message.split())
            why = (why.partition("Worker exit detail: ")[2] or why).partition(" Some common causes")[0]
            name = f"the {_part(actor)} (process {actor['Pid']} on {actor['Address']['IPAddress']})"
            return f"{name} has died: {why[:300] or 'killed'}"
        return None

    def _actors(self, wanted: str) -> list[dict[str, Any]]:
        table = state.actors(job_id=ray.JobID.from_hex(self._job), actor_state_name=wanted)
        return [actor for actor in table.values() if _class(actor) in PARTS]

    def _dead_engine(self) -> str | None:
        """Asks each server, and takes the answers that have come to what was asked before."""
        busy = set(self._asked.values())
        for index, server in enumerate(self._servers):
            if index not in busy:
                self._asked[server.__ray_call__.remote(_engine_has_died)] = index
        if not self._asked:
            return None
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for answer in answered:
            index = self._asked.pop(answer)
            try:
                if ray.get(answer):
                    return f"vLLM's engine process of replica {index} has died"
            except ray.exceptions.RayError:
                continue  # the server itself: `_dead` says it
        return None

    def _usual(self, phase: str) -> float | None:
        seconds = self._seconds[phase]
        return statistics.median(seconds) if len(seconds) >= 2 else None

    def _slow(self) -> str | None:
        phase, elapsed = self.current, time.monotonic() - self._since
        usual = self._usual(phase)
        if elapsed > self._tell_at:
            self._tell_at = 2 * elapsed
            known = f", usually {usual:.0f} s" if usual is not None else ""
            print(f"slow: {phase} has taken {elapsed:.0f} s{known}; waiting for:", flush=True)
            print(self._stacks(phase), flush=True)
        if elapsed > max(self.hang_after, HUNG * (usual or 0.0)):
            return f"{phase} has taken {elapsed:.0f} s, which counts as hung (cluster.hang_after)"
        return None

    def _stacks(self, phase: str) -> str:
        """Where this process, and the actors that the phase waits for, stand just now."""
        frame = sys._current_frames().get(self._main)
        own = "".join(traceback.format_stack(frame)[-4:]) if frame is not None else ""
        parts = [f"driver:\n{own}"]
        classes = WAITED_FOR.get(phase, TRAINING)
        for actor in self._actors("ALIVE"):
            if _class(actor) in classes:
                address = actor["Address"]
                title = f"{_part(actor)}, process {actor['Pid']} on {address['IPAddress']}"
                parts.append(f"{title}:\n{_stack_on(address['NodeID'], actor['Pid'])}")
        return "\n".join(parts)


def _class(actor: dict[str, Any]) -> str:
    """Its plain name: verl makes the class of the ranks inside a function."""
    name: str = actor["ActorClassName"]
    return name.rpartition(".")[2]


def _part(actor: dict[str, Any]) -> str:
    return PARTS[_class(actor)]


def _engine_has_died(server: Any) -> bool:
    """Runs in vLLM's server: what vLLM itself has found. A server that is not up yet has no engine."""
    engine = getattr(server, "engine", None)
    return engine is not None and bool(engine.errored)


def _stack_on(node: str, process: int) -> str:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(stack).options(num_cpus=0, scheduling_strategy=strategy, name="stacks")
    try:
        text: str = ray.get(task.remote(process), timeout=30)
    except ray.exceptions.RayError as error:
        return f"  its node does not answer ({type(error).__name__})"
    return text


def _py_spy() -> str:
    """It comes with Ray, and lies beside Python, which need not be on the path."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or "py-spy"


def _group(process: int) -> int | None:
    """The group of a process, None when it is gone."""
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return None


def stack(process: int) -> str:
    """The Python stacks of a process on this machine and of those it has started, by py-spy, where that is allowed."""
    try:
        found = psutil.Process(process)
        # A worker leads a group of processes. What a fork server has forked for it is in that, and not below it.
        group = [each for each in psutil.process_iter() if _group(each.pid) == process]
        processes = [found, *{*found.children(recursive=True), *group} - {found}]
    except psutil.NoSuchProcess:
        return "  gone"
    texts: list[str] = []
    for each in processes:
        try:
            done = subprocess.run(
                [_py_spy(), "dump", "--nonblocking", "--pid", str(each.pid)],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"  no stack: {error}"
        if done.returncode == 0:
            texts.append(done.stdout)
        elif each is found:
            reason = " ".join(done.stderr.split())
            texts.append(f"  no stack ({reason}); py-spy needs the right to trace: in a container, SYS_PTRACE")
    return "\n".join(texts)
