"""What is done with checkpoints where the training processes are: each reads its own files, and not the driver all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from pathor1.rl import checkpoints, reshard
from pathor1.rl.checkpoints import File

T = TypeVar("T")


def call(workers: Sequence[Any], function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
    """`function(worker, *arguments[rank])` in the process of each rank; raises what one of them raises."""
    running = [worker.__ray_call__.remote(function, *given) for worker, given in zip(workers, arguments, strict=True)]
    found: list[T] = ray.get(running)
    return found


def describe(worker: Any, path: Path, names: Sequence[str]) -> dict[str, File]:
    """The rank's files, which are on the disk then."""
    return checkpoints.describe(path, names, sync=True)


def verify(worker: Any, path: Path, wanted: Mapping[str, File]) -> None:
    """Raises RunError for a file that is not what the manifest says."""
    checkpoints.verify(path, wanted)


def load_actor(worker: Any, folder: Path, ranks: int) -> None:
    """Loads what `ranks` ranks have written. worker: verl's, which holds those of all its roles."""
    (engine,) = (role.actor.engine for role in worker.worker_dict.values())
    reshard.load(engine, folder, ranks)
