"""What is read off verl's queue for the record of a step: its rollouts, and how far vLLM is from the actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta

from pathor1.rl.groups import Dropped, Group, Selection
from pathor1.rl.ledger import LedgerRow


def probability_differences(batch: KVBatchMeta, *, version: int) -> torch.Tensor:
    """[tokens] of all that the weights of `version`, the actor's, have said: what others said, they say otherwise."""
    last = {key: tag["last_tokens"] for key, tag in zip(batch.keys, batch.tags, strict=True) if _said_by(tag, version)}
    if not last:
        return torch.zeros(0)
    names = ["old_log_probs", "rollout_log_probs"]
    data = tq.kv_batch_get(keys=list(last), partition_id=batch.partition_id, select_fields=names)
    ours, theirs = (
        torch.cat([row[-count:] for row, count in zip(data[name].unbind(), last.values(), strict=True)])
        for name in names
    )
    return (ours.exp() - theirs.exp()).abs()


def said_by(group: Group, version: int) -> bool:
    """Whether the weights of a version have said something of a group."""
    return any(_said_by(tag, version) for tag in group.tags)


def _said_by(tag: Mapping[str, Any], version: int) -> bool:
    return not tag.get("is_padding", False) and tag["max_global_steps"] == version


def trained_rows(batch: KVBatchMeta, selection: Selection, step: int) -> list[LedgerRow]:
    """The rollouts of the groups that a step learned from."""
    if not selection.groups:
        return []
    keys = [key for group in selection.groups for key in group.keys]
    data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["advantages"])
    # A rollout's advantage is the same on all of its tokens.
    advantages = dict(zip(keys, (float(row[0]) for row in data["advantages"].unbind()), strict=True))
    return [
        LedgerRow(step=step, group=str(group.number), rollout=index, advantage=advantages[key], **row)
        for group in selection.groups
        for index, (key, row) in enumerate(zip(group.keys, group.rows, strict=True))
    ]


def dropped_rows(dropped: Sequence[Dropped], step: int) -> list[LedgerRow]:
    """The rollouts of groups that are not learned from."""
    return [
        LedgerRow(step=step, group=str(each.group.number), rollout=index, advantage=None, dropped=each.reason, **row)
        for each in dropped
        for index, row in enumerate(each.group.rows)
    ]
