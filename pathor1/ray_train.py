"""Ray Train around a training function: its start, its progress, how it is asked to stop, and why it has refused.

What every rank does around its steps is in `pathor1.ray_ranks`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pathor1 import heap
from pathor1.errors import Fault, RunError
from pathor1.ray_cluster import check_resources, imported_once, ray_cluster
from pathor1.recipe import Cluster

# A progress line at most this often, in seconds.
EVERY = 5.0
# How often Ray Train waits for room for its workers, in the time that a recipe gives it for that.
WAITS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the training processes are told, whatever they train.

    text: the run's recipe, as TOML; metrics: one JSON object a step, written by rank 0; checkpoints: None = it makes
    none. stop, refused: files by which the driver asks for the end, and is told why the input is wrong.
    """

    name: str
    text: str
    gpu: bool
    steps: int
    seed: int
    max_bad_fraction: float
    metrics: Path
    tensorboard: Path
    trackers: Sequence[str]
    checkpoints: Path | None
    stop: Path
    refused: Path


J = TypeVar("J", bound=Job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a kind of training runs, and what is said of it.

    function: what each rank does with its job; early, late: what processes on the CPU import, see
    `pathor1.fork_server`; state: a folder for what Ray Train keeps meanwhile; says: a row of the metrics -> what a line
    of progress has of it; ahead: called when the cluster is there.
    """

    kind: str  # names it to Ray
    what: str  # names it to the user
    function: Callable[[dict[str, Any]], None]
    early: Sequence[str]
    late: Sequence[str]
    state: Path
    out: Path  # what will have been written
    says: Callable[[dict[str, Any]], str]
    ahead: Callable[[], None] = lambda: None


def run(job: Job, training: Training, cluster: Cluster, *, workers: int, begun: int) -> None:
    """Trains on a Ray cluster, the one of `RAY_ADDRESS` or one of its own. begun: steps that were done before.

    Raises RunError for what a worker has found wrong with the input, and SystemExit after SIGTERM.
    """
    kind = "gpu" if job.gpu else "cpu"
    environment = {
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        # For how long it waits for room, each time: Ray Train's own is a minute, without end.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{max(cluster.wait_for_nodes / WAITS, 5.0):g}",
    }
    if not job.gpu:
        environment[heap.HEAPS] = "1"
    started = time.monotonic()
    for left in (job.stop, job.refused):
        left.unlink(missing_ok=True)
    where = f", behind step {begun}" if begun else ""
    print(f"{job.name}: {training.what} on {workers} {kind} workers, {job.steps} steps{where}", flush=True)
    with (
        imported_once(kind, early=training.early, late=training.late) as python,
        ray_cluster(
            environment,
            object_store_gb=cluster.object_store_gb,
            log_to_driver=False,
            secrets=cluster.secrets,
            python=python,
        ),
    ):
        check_resources(kind.upper(), workers + (0 if job.gpu else 1), f"{workers} workers")
        training.ahead()
        line = _line(job.steps, begun, started, training.says)
        with progress(job.metrics, begun, line), stop_asked(job.stop, cluster.stop_grace) as stopped:
            fit(job, training, cluster, workers=workers)
    if stopped:
        row = last_row(job.metrics)
        done = int(row["step"]) if row else 0
        saved = f"; a checkpoint of step {done} is there, and the same command goes on" if job.checkpoints else ""
        print(f"{job.name}: stopped{saved}", flush=True)
        raise SystemExit(128 + stopped[0])
    print(f"{job.name}: {training.out} written after {time.monotonic() - started:.0f} s", flush=True)


def fit(job: Job, training: Training, cluster: Cluster, *, workers: int) -> None:
    """Runs the function on every worker, within a Ray cluster, and again where one has died.

    What a worker has written to `job.refused` is raised as RunError: to start again would not change it. Raises Fault
    where the cluster has no room for the workers any more.
    """
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError  # Ray has no public name for it

    trainer = TorchTrainer(
        training.function,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=job.gpu, resources_per_worker={"GPU": 1} if job.gpu else {"CPU": 1}
        ),
        run_config=ray.train.RunConfig(
            name=training.kind,
            storage_path=str(training.state),
            failure_config=ray.train.FailureConfig(
                max_failures=cluster.max_restarts, controller_failure_limit=WAITS - 1
            ),
        ),
    )
    # In the main thread Ray Train would take Ctrl-C for itself, and end without saving.
    beside = ThreadPoolExecutor(max_workers=1)
    try:
        beside.submit(trainer.fit).result()
    except ray.train.WorkerGroupError:
        if not job.refused.exists():
            raise
    except ray.train.ControllerError as error:
        if not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise
        kind = "GPU" if job.gpu else "CPU"
        there = ray.cluster_resources().get(kind, 0)
        raise Fault(
            f"no room for {workers} workers with a {kind} each within {cluster.wait_for_nodes:g} s (cluster."
            f"wait_for_nodes): the Ray cluster has {there:g} {kind}s, and as a rule a node is gone; the same command "
            "goes on behind the last checkpoint"
        ) from error
    finally:
        beside.shutdown(wait=False)
        shutil.rmtree(training.state, ignore_errors=True)
    if job.refused.exists():
        reason = job.refused.read_text(encoding="utf-8")
        job.refused.unlink()
        raise RunError(reason)


@contextmanager
def stop_asked(stop: Path, grace: float) -> Iterator[list[int]]:
    """Within it, SIGTERM and Ctrl-C ask the workers, by the file `stop`, to save and to end within `grace` seconds.

    Gives a list that has the signal's number then. Another Ctrl-C ends the process at once.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise SystemExit(128 + number)
        asked.append(number)
        print(f"asked to stop: saving a checkpoint, at most {grace:.0f} s (cluster.stop_grace)", flush=True)
        stop.touch()
        signal.setitimer(signal.ITIMER_REAL, grace)

    def late(number: int, frame: Any) -> NoReturn:
        print("not stopped in time: ended where it was, the checkpoint before counts", file=sys.stderr, flush=True)
        raise SystemExit(128 + asked[0])

    handlers = {signal.SIGTERM: ask, signal.SIGINT: ask, signal.SIGALRM: late}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.unlink(missing_ok=True)


@contextmanager
def progress(metrics: Path, begun: int, line: Callable[[dict[str, Any]], str]) -> Iterator[None]:
    """Prints where the training is, from the metrics that its rank 0 writes, wherever that runs.

    begun: steps that were done before; line: a row of the metrics -> what is printed of it.
    """
    done = threading.Event()

    def show(shown: int) -> int:
        row = last_row(metrics)
        if row is None or row["step"] <= shown:
            return shown
        print(line(row), flush=True)
        return int(row["step"])

    def follow() -> None:
        shown = begun
        while not done.wait(EVERY):
            shown = show(shown)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        show(begun - 1)


def last_row(path: Path) -> dict[str, Any] | None:
    """The last whole line of a run's metrics, read from the file's end; None where there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None


def _line(
    steps: int, begun: int, started: float, says: Callable[[dict[str, Any]], str]
) -> Callable[[dict[str, Any]], str]:
    """A row of the metrics -> a line of progress."""

    def line(row: dict[str, Any]) -> str:
        step, elapsed = int(row["step"]), time.monotonic() - started
        left = elapsed / max(step - begun, 1) * (steps - step)
        bar = "#" * (20 * step // steps)
        dropped = f"  {row['data/left_out']:.0f} samples left out" if row["data/left_out"] else ""
        return (
            f"step {step}/{steps} [{bar:.<20}]  {says(row)}  {row['seconds/step']:.2f} s (data "
            f"{row['seconds/data']:.2f} s)  [{elapsed:.0f} s, {left:.0f} s to go]{dropped}"
        )

    return line
