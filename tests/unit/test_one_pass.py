"""A step with one update: the update's own pass stands for that of the old policy, and measures what it did."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

PROMPT, RESPONSES = 3, (2, 4)


def nested(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


def rollouts(logits: torch.Tensor) -> tuple[torch.Tensor, TensorDict]:
    """Log-probabilities of whole sequences that follow from `logits`, and the rollouts as verl's loss has them."""
    lengths = [PROMPT + count for count in RESPONSES]
    said = torch.log_softmax(logits, -1)[:, 1]
    sequences = torch.nested.nested_tensor_from_jagged(said, torch.tensor([0, lengths[0], sum(lengths)]))
    starts = (PROMPT - 1, lengths[0] + PROMPT - 1)
    old = [said.detach()[start : start + count] for start, count in zip(starts, RESPONSES, strict=True)]
    data = TensorDict(
        {
            "prompts": nested([torch.zeros(PROMPT, dtype=torch.int64)] * 2),
            "responses": nested([torch.zeros(count, dtype=torch.int64) for count in RESPONSES]),
            "response_mask": nested([torch.ones(2, dtype=torch.int64), torch.tensor([1, 1, 1, 0])]),
            "advantages": nested([torch.full((2,), 0.7), torch.full((4,), -1.3)]),
            "old_log_probs": nested(old),
            "rollout_log_probs": nested([old[0], old[1] + torch.tensor([0.0, math.log(1.5), 0.0, 5.0])]),
        },
        batch_size=2,
    )
    from verl.utils.tensordict_utils import assign_non_tensor

    assign_non_tensor(data, dp_size=1, batch_num_tokens=5, global_batch_size=2)
    return sequences, data


def actors_loss() -> Any:
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_mini_batch_size=2, ppo_micro_batch_size_per_gpu=2, loss_agg_mode="token-mean"
    )
    return partial(ppo_loss, config=config)


@pytest.mark.parametrize("is_one_number", [False, True])
def test_the_loss_and_its_gradient_are_those_of_two_passes(is_one_number: bool) -> None:
    from pathor1.rl.one_pass import OLD, measuring

    outcomes = []
    for passes in (1, 2):
        logits = torch.randn(sum(RESPONSES) + 2 * PROMPT, 5, generator=torch.Generator().manual_seed(0))
        logits.requires_grad_()
        log_probs, data = rollouts(logits)
        loss = actors_loss()
        if passes == 1:
            loss, data = measuring(loss), data.exclude(OLD)
            if is_one_number:
                data["advantages"] = nested([torch.tensor([0.7]), torch.tensor([-1.3])])
        value, metrics = loss(model_output={"log_probs": log_probs}, data=data)
        value.backward()
        outcomes.append((value.item(), logits.grad, metrics))
    (first, one, measured), (second, two, _) = outcomes
    assert first == second
    assert first != 0.0
    assert one is not None
    assert two is not None
    assert torch.equal(one, two)
    assert one.abs().max() > 0
    # The largest difference is at a token that is learned from: what is masked out does not count.
    probability = torch.log_softmax(logits, -1)[PROMPT + RESPONSES[0] + PROMPT, 1].exp().item()
    assert measured["probability_difference_max"].aggregate() == pytest.approx(0.5 * probability, rel=1e-5)
    assert measured["probability_difference_sum"].aggregate() == pytest.approx(0.5 * probability, rel=1e-5)
    assert measured["probability_difference_tokens"].aggregate() == 5


def test_a_probability_that_is_no_number_is_told_of() -> None:
    from pathor1.rl.one_pass import OLD, measuring

    log_probs, data = rollouts(torch.zeros(sum(RESPONSES) + 2 * PROMPT, 5))
    data["rollout_log_probs"].values()[0] = math.nan
    _, metrics = measuring(actors_loss())(model_output={"log_probs": log_probs}, data=data.exclude(OLD))
    assert math.isnan(metrics["probability_difference_max"].aggregate())


def test_the_entropy_is_told_of_and_not_learned_from() -> None:
    from pathor1.rl.one_pass import OLD, measuring

    log_probs, data = rollouts(torch.zeros(sum(RESPONSES) + 2 * PROMPT, 5))
    entropy = torch.nested.nested_tensor_from_jagged(
        torch.arange(12.0, requires_grad=True), torch.tensor([0, PROMPT + 2, 12])
    )
    value, metrics = measuring(actors_loss())(
        model_output={"log_probs": log_probs, "entropy": entropy}, data=data.exclude(OLD)
    )
    assert not value.requires_grad
    # Of the tokens that are said, one place before each: 2, 3 of the first answer, and 7, 8, 9 of the second.
    assert metrics["actor/entropy_loss"].aggregate() == pytest.approx((2 + 3 + 7 + 8 + 9) / 5)


@pytest.mark.parametrize(
    ("settings", "keys", "expected"),
    [
        ([], {}, True),
        (["rl.prompts_per_update=2"], {}, False),
        (["rl.algorithm=dapo"], {}, False),  # groups are carried
        (["rl.algorithm=dapo", "rl.max_carry_steps=0"], {}, True),
        (["rl.mode=colocate_async"], {}, False),  # they are asked ahead
        (["rl.mode=colocate_async"], {"algorithm.rollout_correction.rollout_is": None}, False),
        ([], {"actor_rollout_ref.actor.ppo_epochs": 2}, False),
        ([], {"actor_rollout_ref.actor.entropy_coeff": 0.01}, False),
        ([], {"actor_rollout_ref.actor.policy_loss.loss_mode": "gspo"}, False),
        ([], {"algorithm.rollout_correction.rollout_is": "sequence"}, False),
        ([], {"algorithm.use_kl_in_reward": True}, False),
    ],
)
def test_where_one_pass_is_enough(tmp_path: Path, settings: list[str], keys: dict[str, Any], expected: bool) -> None:
    from pathor1.recipe import load
    from pathor1.rl.one_pass import is_enough
    from pathor1.rl.verl_config import build

    (tmp_path / "recipe.toml").write_text(
        'name = "run"\n[model]\npath = "m"\n[data]\ntrain = ["t"]\n'
        "[rl]\nsteps = 1\nprompts_per_step = 8\nprompts_per_update = 8\n"
    )
    recipe = load(tmp_path / "recipe.toml", settings).model_copy(update={"verl": keys})
    config = build(recipe, accelerator="cpu")
    OmegaConf.resolve(config)
    assert is_enough(recipe, config) is expected
