"""The objectives of both presets, worked by hand, through the functions that a run calls with what a run gives them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from pathor1.recipe import Recipe
from pathor1.rl.verl_config import build

GRPO, DAPO = "grpo", "dapo"


def actor(algorithm: str, **rl: Any) -> Any:
    """verl's own config object for the actor, as its training worker has it."""
    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass

    tree = {"name": "a", "model": {"path": "m"}, "data": {"train": ["t"]}}
    tree["rl"] = {"steps": 1, "algorithm": algorithm, **rl}
    config = build(Recipe.model_validate(tree), accelerator="gpu")
    OmegaConf.resolve(config)
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def loss(
    algorithm: str,
    ratios: list[list[float]],
    advantages: list[float],
    *,
    reference: list[list[float]] | None = None,
    weights: list[list[float]] | None = None,
    **rl: Any,
) -> float:
    """verl's loss of answers whose tokens have these ratios; reference: π_ref / π of each token."""
    from verl.workers.utils.losses import ppo_loss

    def nested(rows: Any) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)

    count, tokens = len(ratios), sum(map(len, ratios))
    now = [[-1.0 + math.log(ratio) for ratio in row] for row in ratios]
    fields: dict[str, Any] = {
        # One token of prompt before each answer: what a model says of a token stands one place before it.
        "prompts": nested([[1]] * count),
        "responses": nested([[1] * len(row) for row in ratios]),
        "attention_mask": nested([[1] * (len(row) + 1) for row in ratios]),
        "response_mask": nested([[1.0] * len(row) for row in ratios]),
        "old_log_probs": nested([[-1.0] * len(row) for row in ratios]),
        "advantages": nested([[advantage] * len(row) for advantage, row in zip(advantages, ratios, strict=True)]),
    }
    if reference is not None:
        fields["ref_log_prob"] = nested(
            [[p + math.log(r) for p, r in zip(*rows, strict=True)] for rows in zip(now, reference, strict=True)]
        )
    if weights is not None:
        fields["rollout_is_weights"] = nested(weights)
    data = TensorDict(fields, batch_size=count)
    for name, value in (("dp_size", 1), ("batch_num_tokens", tokens), ("global_batch_size", count)):
        data.set_non_tensor(name, value)
    said = {"log_probs": nested([[*row, 0.0] for row in now])}
    value, _ = ppo_loss(actor(algorithm, **rl), said, data)
    return float(value)


def test_advantages_are_relative_to_the_group() -> None:
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    rewards = torch.zeros((6, 3))
    rewards[:, 2] = torch.tensor([1.0, 0.0, 0.0, 1.0, 2.0, 2.0])
    groups: Any = np.array(["a", "a", "a", "a", "b", "b"], dtype=object)
    advantages, _ = compute_grpo_outcome_advantage(rewards, torch.ones((6, 3)), groups)
    # mean 1/2; squares 4 x 1/4 over 3: std 0.57735; (1 - 1/2) / 0.57735 = 0.866025. A constant group teaches nothing.
    expected = [0.866025, -0.866025, -0.866025, 0.866025, 0.0, 0.0]
    assert advantages[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(advantages[:, 0], advantages[:, 2])


@pytest.mark.parametrize(
    ("algorithm", "ratio", "advantage", "expected"),
    [
        (DAPO, 1.5, 1.0, -1.28),  # clipped at 1 + 0.28
        (GRPO, 1.5, 1.0, -1.2),  # at 1 + 0.2
        (DAPO, 1.25, 1.0, -1.25),  # within
        (GRPO, 1.25, 1.0, -1.2),
        (DAPO, 0.5, -1.0, 0.8),  # already less likely: clipped at 1 - 0.2
        (GRPO, 0.5, -1.0, 0.8),
        (DAPO, 1.5, -1.0, 1.5),  # a likelier wrong answer is not clipped ...
        (DAPO, 9.0, -1.0, 3.0),  # ... but by the dual clip
        (DAPO, 0.5, 1.0, -0.5),
    ],
)
def test_the_clipped_loss(algorithm: str, ratio: float, advantage: float, expected: float) -> None:
    assert loss(algorithm, [[ratio]], [advantage], kl_coefficient=0.0) == pytest.approx(expected, abs=1e-5)


def test_dapo_means_over_tokens_and_grpo_over_answers_first() -> None:
    # One token of advantage +1 and three of -1, all of ratio 1.
    answers: Any = [[1.0], [1.0, 1.0, 1.0]]
    assert loss(DAPO, answers, [1.0, -1.0]) == pytest.approx((-1 + 3) / 4, abs=1e-6)
    assert loss(GRPO, answers, [1.0, -1.0], kl_coefficient=0.0) == pytest.approx((-1 + 1) / 2, abs=1e-6)


def test_grpo_has_the_k3_term_and_dapo_none() -> None:
    # k3 of π_ref / π = 1/2: 0.5 - ln 0.5 - 1 = 0.193147.
    assert loss(GRPO, [[1.0]], [0.0], reference=[[0.5]]) == pytest.approx(0.01 * 0.193147, abs=1e-6)
    assert loss(GRPO, [[1.0]], [0.0], reference=[[0.5]], kl_coefficient=0.5) == pytest.approx(0.0965736, abs=1e-5)
    assert loss(DAPO, [[1.0]], [0.0], reference=[[0.5]]) == 0.0


def test_tokens_of_older_weights_count_by_their_importance() -> None:
    assert loss(DAPO, [[1.0, 1.0]], [1.0], weights=[[0.5, 2.0]]) == pytest.approx(-(0.5 + 2.0) / 2, abs=1e-6)
