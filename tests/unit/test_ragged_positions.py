"""Position ids of rollouts that are all equally long are taken apart by tokens, as those of any others."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

ROWS = 4


def batch(lengths: list[int]) -> tuple[TensorDict, list[torch.Tensor]]:
    """Rollouts as the queue hands them over: nested tensors of a list, whose ragged dimension torch finds by itself."""
    ids = [torch.arange(ROWS * length).view(ROWS, length) + 1000 * index for index, length in enumerate(lengths)]
    tokens = [torch.arange(length) + 1000 * index for index, length in enumerate(lengths)]
    fields = {
        name: torch.nested.as_nested_tensor(parts, layout=torch.jagged)
        for name, parts in (("position_ids", ids), ("input_ids", tokens))
    }
    return TensorDict(fields, batch_size=len(lengths)), ids


# 16 rollouts of 64 tokens: as many rows in all as tokens in one, so that their number alone does not tell them apart.
@pytest.mark.parametrize("lengths", [[60] * 5, [64] * 16, [7], [5, 9, 5, 60], [3, 4]])
def test_position_ids_are_split_by_tokens(lengths: list[int]) -> None:
    from verl.utils.seqlen_balancing import rearrange_micro_batches
    from verl.workers import engine_workers
    from verl.workers.engine import base

    from pathor1.rl import pictures  # noqa: F401 (verl imports it in its workers)

    data, ids = batch(lengths)
    for module in (engine_workers, base, base):  # verl asks for it more than once on the way
        module.maybe_fix_3d_position_ids(data)
    assert [part.tolist() for part in data["position_ids"].unbind()] == [part.tolist() for part in ids]
    assert int(data["position_ids"].offsets()[-1]) == sum(lengths)

    micro_batches, places = rearrange_micro_batches(data, max_token_len=max(130, *lengths), dp_group=None)
    for micro_batch, rollouts in zip(micro_batches, places, strict=True):
        base.maybe_fix_3d_position_ids(micro_batch)
        split = [part.tolist() for part in micro_batch["position_ids"].unbind()]
        assert split == [ids[rollout].tolist() for rollout in rollouts]


def test_a_model_with_one_row_of_them_is_left_alone() -> None:
    from pathor1.rl.ragged_positions import make_tokens_ragged

    one_row = torch.nested.as_nested_tensor([torch.arange(4), torch.arange(4)], layout=torch.jagged)
    data = TensorDict({"position_ids": one_row}, batch_size=2)
    make_tokens_ragged(data)
    assert data["position_ids"] is one_row
    make_tokens_ragged(TensorDict({"input_ids": one_row}, batch_size=2))
