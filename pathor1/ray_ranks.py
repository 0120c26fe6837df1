"""What every rank of a training by `pathor1.ray_train` does around its steps: its data, its numbers, its refusals."""

from __future__ import annotations

import math
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pathor1 import checkpoints, files, heap
from pathor1.data.dealer import Deal, Dealer, Share
from pathor1.data.stream import StreamState
from pathor1.errors import RunError, UserError
from pathor1.ray_train import J, Job
from pathor1.tracking.log import MetricsLog

# Steps whose batches are made ahead.
AHEAD = 2
Batch = TypeVar("Batch")


def refusing(train: Callable[[J], None], job: J) -> None:
    """Trains on this rank. What is wrong with the input is written down: a restart of Ray Train's would not change it.

    Raises UserError where it finds that.
    """
    if job.refused.exists():
        return
    if not job.gpu:
        heap.keep_freed()
    try:
        train(job)
    except Exception as error:
        cause = getattr(error, "cause", None) or error  # Ray hands on what happened in another process so
        if isinstance(cause, UserError):
            files.write(job.refused, str(cause))
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What training goes on from, step 0 and None = from its beginning. ranks: how many have written the checkpoint."""

    step: int = 0
    path: Path | None = None
    ranks: int = 0
    stream: StreamState | None = None


def begun(job: Job, rank: int) -> Begun:
    """The last checkpoint, which the first rank looks for, and tells the others; what is not whole, it removes."""
    import torch.distributed as dist

    told = [Begun()]
    if rank == 0 and job.checkpoints is not None:
        checkpoints.remove_incomplete(job.checkpoints)
        path = checkpoints.latest(job.checkpoints)
        if path is not None:
            manifest = checkpoints.read(path)
            checkpoints.verify(path, manifest.files)
            told = [Begun(step=manifest.step, path=path, ranks=manifest.ranks, stream=manifest.stream)]
    dist.broadcast_object_list(told, src=0)
    return told[0]


@contextmanager
def metrics_log(job: Job, rank: int, done: int) -> Iterator[MetricsLog | None]:
    """Where the steps' numbers go, on the first rank; None on the others."""
    if rank:
        yield None
        return
    with MetricsLog(
        job.metrics,
        job.tensorboard,
        run=job.name,
        keep_up_to=done,
        trackers=job.trackers,
        recipe=tomllib.loads(job.text),
        constants={"steps_planned": float(job.steps), "limit/left_out_share": job.max_bad_fraction},
    ) as log:
        yield log


@contextmanager
def dealing(deal: Deal[Any, Any], rank: int, ranks: int, start: StreamState | None, done: int) -> Iterator[Any]:
    """A handle of the dealer, which the first rank starts: it reads ahead at once."""
    import ray
    import torch.distributed as dist

    told = [f"dealer-{uuid.uuid4().hex}"]
    made: Any = None
    if rank == 0:
        made = ray.remote(num_cpus=0)(Dealer).options(name=told[0])
        made = made.remote(deal, ranks=ranks, start=start, done=done)
    dist.broadcast_object_list(told, src=0)
    try:
        yield made or ray.get_actor(told[0])
    finally:
        if made is not None:
            ray.kill(made)


def feed(
    dealer: Any, rank: int, steps: range, made: Callable[[Share[Any]], Batch]
) -> Iterator[tuple[int, Share[Any], Batch, float]]:
    """Each step with this rank's share, what is made of it beside the training, and how long it waited for that (s)."""
    import ray

    def ahead(step: int) -> tuple[Share[Any], Batch]:
        share = ray.get(dealer.share.remote(step, rank))
        return share, made(share)

    with ThreadPoolExecutor(max_workers=1) as beside:
        waiting: list[Future[tuple[Share[Any], Batch]]] = [beside.submit(ahead, step) for step in steps[:AHEAD]]
        for place, step in enumerate(steps):
            started = time.monotonic()
            share, batch = waiting.pop(0).result()
            if place + AHEAD < len(steps):
                waiting.append(beside.submit(ahead, steps[place + AHEAD]))
            yield step, share, batch, time.monotonic() - started


def check_finite(values: Mapping[str, float], where: str, table: str) -> None:
    """Raises RunError where a step has left weights that are no numbers: nothing good comes of them any more.

    where: the step; table: the recipe's that has its learning rate.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise RunError(f"{where}: the {name} is {value}; lower {table}.learning_rate")
