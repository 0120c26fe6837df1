"""Ray Train around a training function: its start, its progress, how it is asked to stop, and why it has refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from pathor1.errors import RunError

# A progress line at most this often, in seconds.
EVERY = 5.0


def fit(
    function: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    workers: int,
    gpu: bool,
    state: Path,
    max_failures: int,
    refused: Path,
) -> None:
    """Runs a function on every worker, within a Ray cluster, and again where one has died.

    state: a folder for what Ray Train keeps meanwhile. refused: the file in which a worker writes what is wrong with
    the input, which is raised as RunError: to start again would not change it.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        function,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"GPU": 1} if gpu else {"CPU": 1}
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(state),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    )
    # In the main thread Ray Train would take Ctrl-C for itself, and end without saving.
    beside = ThreadPoolExecutor(max_workers=1)
    try:
        beside.submit(trainer.fit).result()
    except ray.train.WorkerGroupError:
        if not refused.exists():
            raise
    finally:
        beside.shutdown(wait=False)
        shutil.rmtree(state, ignore_errors=True)
    if refused.exists():
        reason = refused.read_text(encoding="utf-8")
        refused.unlink()
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
