"""What is done with checkpoints where the training processes are: each reads its own files, and not the driver all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from pathor1 import checkpoints
from pathor1.checkpoints import File, Manifest
from pathor1.errors import RunError
from pathor1.rl import reshard

T = TypeVar("T")


def call(workers: Sequence[Any], function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
    """`function(worker, *arguments[rank])` in the process of each rank; raises what one of them raises."""
    running = [worker.__ray_call__.remote(function, *given) for worker, given in zip(workers, arguments, strict=True)]
    found: list[T] = ray.get(running)
    return found


def save(group: Any, path: Path, step: int) -> dict[str, File]:
    """Writes the actor to a checkpoint's folder, and returns what is written, which is on the disk then.

    group: verl's worker group of the actor.
    """
    group.save_checkpoint(str(path / "actor"), None, step, max_ckpt_to_keep=None)
    (path / "actor" / "huggingface").rename(path / "huggingface")
    shares = checkpoints.shares(checkpoints.contents(path), group.world_size)
    written: dict[str, File] = {}
    for found in call(group.workers, describe, [(path, share) for share in shares]):
        written |= found
    return written


def load(group: Any, path: Path, manifest: Manifest) -> None:
    """Loads the actor of a checkpoint, when all that is read of the checkpoint is as it was written.

    Each rank checks the files that it wrote, or its share of those of another number of ranks. Raises RunError for a
    checkpoint that is damaged, or that this number of ranks cannot load.
    """
    ranks, written = group.world_size, manifest.files
    checkpoints.verify(path, {name: file for name, file in written.items() if "/" not in name})
    shares = checkpoints.shares([name for name in written if name.startswith("actor/")], ranks)
    call(group.workers, verify, [(path, {name: written[name] for name in share}) for share in shares])
    actor = path / "actor"
    if reshard.can_load(actor):
        if manifest.ranks != ranks:
            print(f"{path.name}: written by {manifest.ranks} ranks, loaded by {ranks}", flush=True)
        call(group.workers, load_actor, [(actor, manifest.ranks)] * ranks)
    elif manifest.ranks == ranks:
        group.load_checkpoint(local_path=str(actor), del_local_after_load=False)
    else:
        raise RunError(
            f"{path}: was written by {manifest.ranks} ranks and this run has {ranks}, which the fsdp2 strategy alone "
            "can do; set cluster.nodes and cluster.accelerators_per_node as they were"
        )


# In the process of a rank; worker: verl's, which holds those of all its roles.


def describe(worker: Any, path: Path, names: Sequence[str]) -> dict[str, File]:
    """`checkpoints.describe` of the rank's files, which are on the disk then."""
    return checkpoints.describe(path, names, sync=True)


def verify(worker: Any, path: Path, wanted: Mapping[str, File]) -> None:
    """`checkpoints.verify` of the rank's files."""
    checkpoints.verify(path, wanted)


def load_actor(worker: Any, folder: Path, ranks: int) -> None:
    """`reshard.load` into the rank's actor."""
    (actor,) = (role.actor for role in worker.worker_dict.values() if role.actor is not None)
    reshard.load(actor.engine, folder, ranks)
