"""Groups that wait for the next step, in a checkpoint: a run that is resumed learns from them as if it had gone on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from verl.utils.tensordict_utils import list_of_dict_to_tensordict, unwrap_non_tensor_data

from pathor1.rl import pictures
from pathor1.rl.groups import Group
from pathor1.rl.sampler import PARTITION
from pathor1.rl.weights_only import weights_only

NAME = "carried.pt"


def save(folder: Path, groups: Sequence[Group]) -> None:
    """Writes the groups with all that the queue has of them."""
    if not groups:
        return
    keys = [key for group in groups for key in group.keys]
    data = tq.kv_batch_get(keys=keys, partition_id=PARTITION)
    rows: list[dict[str, Any]] = [
        {str(name): unwrap_non_tensor_data(data[name][index]) for name in data.keys()}  # noqa: SIM118 (a TensorDict)
        for index in range(len(keys))
    ]
    shown = {row["uid"] for row in rows if row["multi_modal_inputs"]}
    vision = {name: dict(found) for name, found in pictures.fetch(sorted(shown)).items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"groups": list(groups), "rows": rows, "vision": vision}, folder / NAME)


def load(folder: Path) -> list[Group]:
    """Puts the groups of a checkpoint back into the queue; [] where it has none."""
    path = folder / NAME
    if not path.exists():
        return []
    with weights_only(Group):
        saved: dict[str, Any] = torch.load(path, weights_only=True)
    groups: list[Group] = saved["groups"]
    for name, vision in saved["vision"].items():
        asyncio.run(pictures.store(name, vision))
    rows = iter(saved["rows"])
    for group in groups:
        for key, tag in zip(group.keys, group.tags, strict=True):
            fields = list_of_dict_to_tensordict([next(rows)])
            tq.kv_batch_put(keys=[key], fields=fields, tags=[dict(tag)], partition_id=PARTITION)
    return groups
