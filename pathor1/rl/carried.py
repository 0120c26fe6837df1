"""What one step leaves to the next, in a checkpoint: a run that is resumed goes on as if it had not been stopped.

That is the groups that wait, with all that the queue has of them, the share of groups that is expected to be
informative, by which the next step asks for more, and the questions that are not answered yet, which are asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from verl.utils.tensordict_utils import unwrap_non_tensor_data

from pathor1.rl import pictures
from pathor1.rl.groups import Group, Pool
from pathor1.rl.rollouts import queue_batch
from pathor1.rl.sampler import PARTITION
from pathor1.samples import Sample, from_row, to_row
from pathor1.weights_only import weights_only

NAME = "carried.pt"
# What verl's trainer makes of rollouts. A step that is given up may have begun with some that go on waiting.
MADE = {"log_probs", "old_log_probs", "entropy", "ref_log_prob", "advantages", "returns", "rollout_is_weights"}


def save(folder: Path, pool: Pool, asked: Mapping[int, Sample]) -> None:
    """Writes what the pool leaves to the next step. asked: the questions without an answer, by number in the run."""
    groups = list(pool.waiting)
    rows = [row for group in groups for row in rollouts(group.keys)]
    shown = {row["uid"] for row in rows if row["multi_modal_inputs"]}
    vision = {name: dict(found) for name, found in pictures.fetch(sorted(shown)).items()}
    folder.mkdir(parents=True, exist_ok=True)
    questions = {number: to_row(sample) for number, sample in asked.items()}
    saved = {"share": pool.share, "groups": groups, "rows": rows, "vision": vision, "asked": questions}
    torch.save(saved, folder / NAME)


def rollouts(keys: Sequence[str]) -> list[dict[str, Any]]:
    """What the queue has of these rollouts of a group, one by one, without what a step has made of them."""
    data = tq.kv_batch_get(keys=list(keys), partition_id=PARTITION)
    names = [name for name in map(str, data.keys()) if name not in MADE]
    return [{name: unwrap_non_tensor_data(data[name][index]) for name in names} for index in range(len(keys))]


def load(folder: Path, pool: Pool) -> dict[int, Sample]:
    """Puts the groups of a checkpoint back into the queue, and what the pool knew of them into the pool.

    Returns the questions that are to be asked again, by their numbers in the run.
    """
    with weights_only(Group):
        saved: dict[str, Any] = torch.load(folder / NAME, weights_only=True)
    groups: list[Group] = saved["groups"]
    for name, vision in saved["vision"].items():
        asyncio.run(pictures.store(name, vision))
    rows = iter(saved["rows"])
    for group in groups:
        fields = queue_batch(list(islice(rows, len(group.keys))))
        tags = [dict(tag) for tag in group.tags]
        tq.kv_batch_put(keys=list(group.keys), fields=fields, tags=tags, partition_id=PARTITION)
    pool.waiting, pool.share = groups, saved["share"]
    asked = saved.get("asked", {})  # a checkpoint of before there were any has none
    return {number: from_row(asked[number]) for number in sorted(asked)}
