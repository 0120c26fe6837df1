"""What one step leaves to the next, in a checkpoint: a run that is resumed goes on as if it had not been stopped.

That is the groups that wait, with all that the queue has of them, and the share of groups that is expected to be
informative, by which the next step asks for more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from verl.utils.tensordict_utils import list_of_dict_to_tensordict, unwrap_non_tensor_data

from pathor1.rl import pictures
from pathor1.rl.groups import Group, Pool
from pathor1.rl.sampler import PARTITION
from pathor1.weights_only import weights_only

NAME = "carried.pt"


def save(folder: Path, pool: Pool) -> None:
    """Writes what the pool leaves to the next step."""
    groups = list(pool.waiting)
    rows = _rows([key for group in groups for key in group.keys])
    shown = {row["uid"] for row in rows if row["multi_modal_inputs"]}
    vision = {name: dict(found) for name, found in pictures.fetch(sorted(shown)).items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"share": pool.share, "groups": groups, "rows": rows, "vision": vision}, folder / NAME)


def _rows(keys: Sequence[str]) -> list[dict[str, Any]]:
    """What the queue has of these rollouts, one by one."""
    if not keys:
        return []
    data = tq.kv_batch_get(keys=list(keys), partition_id=PARTITION)
    return [
        {str(name): unwrap_non_tensor_data(data[name][index]) for name in data.keys()}  # noqa: SIM118 (a TensorDict)
        for index in range(len(keys))
    ]


def load(folder: Path, pool: Pool) -> None:
    """Puts the groups of a checkpoint back into the queue, and what the pool knew of them into the pool."""
    with weights_only(Group):
        saved: dict[str, Any] = torch.load(folder / NAME, weights_only=True)
    groups: list[Group] = saved["groups"]
    for name, vision in saved["vision"].items():
        asyncio.run(pictures.store(name, vision))
    rows = iter(saved["rows"])
    for group in groups:
        for key, tag in zip(group.keys, group.tags, strict=True):
            fields = list_of_dict_to_tensordict([next(rows)])
            tq.kv_batch_put(keys=[key], fields=fields, tags=[dict(tag)], partition_id=PARTITION)
    pool.waiting, pool.share = groups, saved["share"]
