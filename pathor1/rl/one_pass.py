"""A step with one update needs one forward pass: the policy that is updated is still the one that answered.

verl runs the actor over a step's rollouts first, for the log-probabilities of the old policy, and again to learn from
them. Where a step has one update both are the same numbers, and the ratio of the two policies is 1 at every token: the
update's own log-probabilities stand for the old ones, as TRL has it. What that first pass was also for, the entropy and
how far vLLM's probabilities are from the actor's, is measured in the update, and looked at behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import response_from_nested

from pathor1.recipe import Recipe
from pathor1.rl import group_advantages
from pathor1.rl.verl_config import carries

OLD = "old_log_probs"
# verl's names of what the update has measured -> those that the first pass has.
MEASURED = {
    "actor/probability_difference_max": "rollout/probability_difference_max",
    "actor/entropy_loss": "actor/entropy",
}
SUM, TOKENS = "probability_difference_sum", "probability_difference_tokens"

Loss = Callable[..., tuple[torch.Tensor, dict[str, Any]]]


def is_enough(recipe: Recipe, config: Any) -> bool:
    """Whether one pass is enough for a run's steps, and nothing in verl's config asks for the old policy's numbers.

    Groups that were carried from an earlier step were said by another policy, and are weighed by it. config: verl's.
    """
    actor, correction = config.actor_rollout_ref.actor, config.algorithm.rollout_correction
    return (
        not carries(recipe)
        and recipe.rl.prompts_per_update == recipe.rl.prompts_per_step
        and actor.ppo_epochs == 1
        and actor.entropy_coeff == 0
        and actor.policy_loss.loss_mode == "vanilla"
        and not config.algorithm.use_kl_in_reward
        and not any((correction.rollout_is, correction.rollout_rs, correction.bypass_mode))
    )


def measuring(loss: Loss) -> Loss:
    """verl's loss for rollouts without the old policy's log-probabilities, and with one advantage for all tokens."""

    def measured(*, model_output: dict[str, Any], data: TensorDict, dp_group: Any = None) -> Any:
        mask = data["response_mask"]
        ours = response_from_nested(model_output["log_probs"].detach(), mask)
        data = data.copy()
        data[OLD] = ours
        if data["advantages"].values().shape != mask.values().shape:
            data["advantages"] = group_advantages.spread(data["advantages"], mask)
        if "entropy" in model_output:  # it is told of and not learned from
            model_output = {**model_output, "entropy": model_output["entropy"].detach()}
        value, metrics = loss(model_output=model_output, data=data, dp_group=dp_group)
        theirs = data["rollout_log_probs"].values()
        differences = (ours.values().exp() - theirs.exp()).abs()[mask.values().bool()]
        largest = differences.max() if len(differences) else torch.zeros(())  # NaN where one is
        return value, {
            **metrics,
            "probability_difference_max": Metric(AggregationType.MAX, float(largest)),
            SUM: Metric(AggregationType.SUM, float(differences.sum())),
            TOKENS: Metric(AggregationType.SUM, float(len(differences))),
        }

    return measured


def take_measured(metrics: dict[str, Any]) -> None:
    """Gives what the update has measured the names that the first pass has for it."""
    for theirs, ours in MEASURED.items():
        metrics[ours] = metrics.pop(theirs)
    total, tokens = (metrics.pop(f"actor/{name}") for name in (SUM, TOKENS))
    metrics["rollout/probability_difference_mean"] = total / max(tokens, 1.0)
