"""One advantage for each rollout, of the scores that the driver has, is what verl makes of all tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

# (score, cut at the limit) of each rollout, by group: shaped scores, a group without a difference, one with one right.
GROUPS = {
    "3": [(1.0, False), (0.25, False), (-0.4, True), (0.25, True)],
    "11": [(0.5, False)] * 4,
    "7": [(0.0, False), (0.0, True), (1.1, False), (0.0, False)],
}
PADDING = "pad0f"


def config(**changes: Any) -> Any:
    algorithm = {"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": True, "gamma": 1.0, "lam": 1.0, **changes}
    return OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": {"n": 4}}})


def batch() -> tuple[Any, Any]:
    """Keys of all groups as they are shared out to ranks, with two that fill the batch up, and the groups."""
    groups = [
        SimpleNamespace(
            keys=[f"{number}_{index}_0" for index in range(4)],
            rows=[{"total": score, "truncated": cut} for score, cut in rollouts],
        )
        for number, rollouts in GROUPS.items()
    ]
    keys = [key for group in groups for key in group.keys] + [f"{PADDING}_0_0", f"{PADDING}_1_0"]
    order = np.random.default_rng(0).permutation(len(keys))
    return SimpleNamespace(keys=[keys[place] for place in order]), SimpleNamespace(groups=groups)


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("changes", [{}, {"norm_adv_by_std_in_grpo": False}])
def test_each_token_gets_what_verl_gives_it(mask_truncated: bool, changes: dict[str, Any]) -> None:
    from verl.protocol import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    from pathor1.rl.group_advantages import compute, is_enough, spread

    meant, selection = config(**changes), batch()[1]
    keys = batch()[0].keys
    assert is_enough(meant)
    ours = compute(batch()[0], selection, config=meant, mask_truncated=mask_truncated)
    assert ours.shape == (14, 1)
    lengths = [1 + place % 5 for place in range(14)]
    rows = {key: row for group in selection.groups for key, row in zip(group.keys, group.rows, strict=True)}
    # As the queue has them: an outcome reward on the last token, and a mask of what is learned from.
    rewards, mask = torch.zeros(14, 5), torch.zeros(14, 5, dtype=torch.int64)
    for place, (key, length) in enumerate(zip(keys, lengths, strict=True)):
        row = rows.get(key)
        rewards[place, length - 1] = 0.0 if row is None else row["total"]
        mask[place, :length] = int(row is not None and not (mask_truncated and row["truncated"]))
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": mask},
        non_tensors={"uid": np.array([key.split("_")[0] for key in keys], dtype=object)},
    )
    theirs = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=keys,
        adv_estimator="grpo",
        num_repeat=4,
        norm_adv_by_std_in_grpo=meant.algorithm.norm_adv_by_std_in_grpo,
        config=meant.algorithm,
    ).batch["advantages"]
    nested_mask = torch.nested.as_nested_tensor(
        [row[:length] for row, length in zip(mask, lengths, strict=True)], layout=torch.jagged
    )
    one_each = torch.nested.as_nested_tensor(list(ours), layout=torch.jagged)  # as the queue hands them out
    tokens = spread(one_each, nested_mask)
    assert [len(row) for row in tokens.unbind()] == lengths
    assert tokens.to_padded_tensor(0.0).shape == (14, 5)
    for row, wanted, length in zip(tokens.unbind(), theirs, lengths, strict=True):
        assert torch.equal(row, wanted[:length])
    assert len({round(float(value), 4) for value in ours}) >= 5


def test_what_is_not_learned_from_counts_in_its_group_all_the_same() -> None:
    from pathor1.rl.group_advantages import compute

    meant, selection = batch()
    found = {
        masks: dict(zip(meant.keys, compute(meant, selection, config=config(), mask_truncated=masks), strict=True))
        for masks in (False, True)
    }
    assert found[False]["3_2_0"] < -1.0
    assert found[True]["3_2_0"] == 0.0
    assert found[True]["3_0_0"] == found[False]["3_0_0"] > 1.0
    assert all(found[True][f"11_{index}_0"] == 0.0 for index in range(4))
    assert found[True][f"{PADDING}_0_0"] == 0.0


@pytest.mark.parametrize("estimator", ["gae", "rloo", "reinforce_plus_plus"])
def test_other_estimators_are_verls_own(estimator: str) -> None:
    from pathor1.rl.group_advantages import is_enough

    assert not is_enough(config(adv_estimator=estimator))
