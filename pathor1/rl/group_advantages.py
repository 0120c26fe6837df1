"""Advantages of whole answers (GRPO), of the scores that the driver has: one number for each rollout.

verl's trainer fetches the rewards, masks and log-probabilities of all tokens of a step for them, and puts two numbers
for each token back: all of it through the driver, a millisecond for each rollout. A rollout's score, and whether its
tokens are learned from, came with its group; what each token gets is worked out where it is learned from (`spread`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transfer_queue import KVBatchMeta
from verl.protocol import DataProto

from pathor1.rl.groups import Selection


def is_enough(config: Any) -> bool:
    """Whether all tokens of a rollout have the same advantage, by nothing but scores. config: verl's.

    So it is where a step makes one pass (`one_pass.is_enough`), in which nothing is weighed by log-probabilities.
    """
    return bool(config.algorithm.adv_estimator == "grpo")


def compute(batch: KVBatchMeta, selection: Selection, *, config: Any, mask_truncated: bool) -> torch.Tensor:
    """[b, 1] in the order of the batch, by verl's own function; 0 where a rollout is masked, or fills the batch up."""
    # Ranks load this module, too, and not verl's trainer.
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    rows = {key: row for group in selection.groups for key, row in zip(group.keys, group.rows, strict=True)}
    found = [rows.get(key) for key in batch.keys]
    scores = [0.0 if row is None else row["total"] for row in found]
    learned = [row is not None and not (mask_truncated and row["truncated"]) for row in found]
    data = DataProto.from_dict(
        tensors={
            "token_level_rewards": torch.tensor(scores, dtype=torch.float32)[:, None],
            "response_mask": torch.tensor(learned, dtype=torch.int64)[:, None],
        },
        non_tensors={"uid": np.array([key.rsplit("_", 2)[0] for key in batch.keys], dtype=object)},
    )
    made = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=batch.keys,
        adv_estimator=config.algorithm.adv_estimator,
        num_repeat=config.actor_rollout_ref.rollout.n,
        norm_adv_by_std_in_grpo=config.algorithm.norm_adv_by_std_in_grpo,
        config=config.algorithm,
    )
    advantages: torch.Tensor = made.batch["advantages"]
    return advantages


def spread(advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A number for each rollout, nested [b, 1], and the mask of its tokens, nested [b, n] -> one for each token."""
    lengths = mask.offsets().diff()
    each = torch.repeat_interleave(advantages.values(), lengths) * mask.values()
    # Without the longest torch takes all tokens for it where it pads.
    return torch.nested.nested_tensor_from_jagged(each, mask.offsets(), max_seqlen=int(lengths.max()))
