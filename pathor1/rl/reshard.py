"""verl's FSDP2 actor from a checkpoint, on as many ranks as wrote it or on any other number.

verl writes a file for each rank, with its part of every tensor, and reads them back on as many ranks alone, by pickle.
Here each rank maps the files of all that wrote (they are not read as a whole, and lie on a disk that all nodes share),
and `torch.distributed.checkpoint` copies the pieces that overlap with its own part into it, one tensor after the other.
So a rank needs memory for its own part alone, no process ever holds a whole tensor, and what is in the files is data:
no type is loaded but torch's own and numpy's arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.futures import Future

# What numpy's random state is pickled with, beside torch's own types: nothing else is loaded from a checkpoint.
NUMPY = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]  # type: ignore[attr-defined]

Tensors = Mapping[str, torch.Tensor]


def can_load(folder: Path) -> bool:
    """Whether an actor's folder was written by FSDP2, whose parts say where they belong."""
    settings: dict[str, Any] = json.loads((folder / "fsdp_config.json").read_text(encoding="utf-8"))
    return settings["FSDP_version"] == 2


def load(engine: Any, folder: Path, ranks: int) -> None:
    """Loads weights, optimizer and schedule into verl's FSDP2 engine of this rank, which waits for no other.

    folder: with the files of `ranks` ranks. The random state is that of the rank of the same number; a rank that had
    none keeps the one that it started with.
    """
    manager, rank = engine.checkpoint_manager, engine.rank
    if manager.should_load_model:
        copy_parts([_read(folder, "model", each, ranks) for each in range(ranks)], engine.module.state_dict())
    if manager.should_load_optimizer:
        _load_optimizer(engine.optimizer, [_read(folder, "optim", each, ranks) for each in range(ranks)])
    if manager.should_load_extra:
        extra = _read(folder, "extra_state", min(rank, ranks - 1), ranks)
        if engine.lr_scheduler is not None:
            engine.lr_scheduler.load_state_dict(extra["lr_scheduler"])
        if rank < ranks:
            manager.load_rng_state(extra["rng"])
    # As behind verl's own loading: what is kept in the host's memory between phases goes there.
    engine.to(device="cpu", model=engine._is_offload_param, optimizer=engine._is_offload_optimizer, grad=False)


def _read(folder: Path, kind: str, rank: int, ranks: int) -> dict[str, Any]:
    """A file of verl's, mapped into memory: its tensors are read when they are copied."""
    path = folder / f"{kind}_world_size_{ranks}_rank_{rank}.pt"
    with torch.serialization.safe_globals(NUMPY):
        read: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return read


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: Sequence[dict[str, Any]]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    first = saved[0]
    state = {
        number: {
            # A copy in any case: what stays mapped would change, or be gone, with the checkpoint's file.
            name: torch.zeros_like(parameters[number]) if isinstance(value, DTensor) else value.clone()
            for name, value in values.items()
        }
        for number, values in first["state"].items()
    }
    copy_parts([_parts(each["state"]) for each in saved], _parts(state))
    optimizer.load_state_dict({"state": state, "param_groups": first["param_groups"]})


def _parts(state: Mapping[int, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The tensors of an optimizer's state that are in parts, as its parameters are; not its counts of steps."""
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, DTensor)
    }


def copy_parts(saved: Sequence[Tensors], into: dict[str, torch.Tensor]) -> None:
    """Fills this rank's parts of tensors from those that other ranks have saved, one mapping a rank.

    Raises RuntimeError for a tensor that was not saved, ValueError for one of another shape.
    """
    with torch.no_grad():
        dcp.load(into, storage_reader=_Parts(saved), no_dist=True)


class _Parts(dcp.StorageReader):
    """The parts of all ranks as one checkpoint."""

    def __init__(self, saved: Sequence[Tensors]) -> None:
        self.parts: dict[str, dict[torch.Size, torch.Tensor]] = {}  # by name, and by offset in the whole
        self.wholes: dict[str, torch.Tensor] = dict(saved[0])
        for rank, tensors in enumerate(saved):
            for name, tensor in tensors.items():
                offset, part = _placed(tensor, rank)
                if part.numel():
                    self.parts.setdefault(name, {})[offset] = part

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=whole.dtype),
                    whole.shape,
                    [ChunkStorageMetadata(offset, part.shape) for offset, part in self.parts[name].items()],
                )
                for name, whole in self.wholes.items()
            },
            storage_meta=StorageMeta(),
        )

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> Future[None]:
        for item in plan.items:
            index: MetadataIndex = item.storage_index
            assert index.offset is not None
            piece = self.parts[index.fqn][index.offset]
            for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                piece = piece.narrow(dimension, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(piece)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: dcp.LoadPlan) -> dcp.LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[dcp.LoadPlan]) -> list[dcp.LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _placed(tensor: torch.Tensor, rank: int) -> tuple[torch.Size, torch.Tensor]:
    """Where a rank's part of a tensor begins in the whole, and the part."""
    if not isinstance(tensor, DTensor):
        return torch.Size([0] * tensor.dim()), tensor
    mesh = tensor.device_mesh.mesh
    (place,) = (mesh == rank).nonzero().tolist()
    _, offset = _compute_local_shape_and_global_offset(tensor.shape, mesh.shape, place, tensor.placements)
    return torch.Size(offset), tensor.to_local()
