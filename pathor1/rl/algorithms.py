"""What GRPO and DAPO are: two presets of plain numbers, any of which a recipe can override.

GRPO (paper, figure 2 and equation 1; DeepSeekMath): symmetric clipping, the mean over each sequence and then over
sequences, a KL term to the frozen reference model.

    J = E[ 1/G Σ_i 1/|o_i| Σ_t min(r_it A_i, clip(r_it, 1-ε, 1+ε) A_i) - β KL(π‖π_ref) ],  A_i = (R_i - mean R) / std R

DAPO (paper, figure 2 and equation 2; DAPO, equations 8 to 13): clip-higher, the mean over all tokens, no KL, groups in
which all answers are right or all wrong are dropped, a soft punishment of overlong answers.

    J = E[ 1/Σ_i|o_i| Σ_i Σ_t min(r_it A_i, clip(r_it, 1-ε_low, 1+ε_high) A_i) ]  subject to 0 < #right < G
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pathor1.recipe import Recipe
from pathor1.recipe_rl import RL


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """The numbers that tell GRPO from DAPO."""

    name: str
    clip_low: float  # ε_low: the ratio is clipped below 1 - clip_low
    clip_high: float  # ε_high: and above 1 + clip_high
    loss_aggregation: str  # "sequence-mean" or "token-mean"
    kl_coefficient: float  # β of the k3 estimate to the reference model; 0 = no reference model
    dynamic_sampling: bool  # drop groups without a difference in raw accuracy, and generate others
    format_weight: float
    accuracy_weight: float
    length_weight: float


GRPO = Algorithm(
    name="grpo",
    clip_low=0.2,
    clip_high=0.2,
    loss_aggregation="sequence-mean",
    kl_coefficient=0.01,
    dynamic_sampling=False,
    format_weight=1.0,
    accuracy_weight=1.0,
    length_weight=0.0,
)
DAPO = Algorithm(
    name="dapo",
    clip_low=0.2,
    clip_high=0.28,
    loss_aggregation="token-mean",
    kl_coefficient=0.0,
    dynamic_sampling=True,
    format_weight=1.0,
    accuracy_weight=1.0,
    length_weight=1.0,
)
PRESETS = {preset.name: preset for preset in (GRPO, DAPO)}


def resolve(rl: RL) -> Algorithm:
    """The recipe's preset with whatever the recipe sets itself."""
    chosen: dict[str, Any] = {
        "clip_low": rl.clip_low,
        "clip_high": rl.clip_high,
        "loss_aggregation": rl.loss_aggregation,
        "kl_coefficient": rl.kl_coefficient,
        "dynamic_sampling": rl.dynamic_sampling,
        "format_weight": rl.reward.format,
        "accuracy_weight": rl.reward.accuracy,
        "length_weight": rl.reward.length,
    }
    return replace(PRESETS[rl.algorithm], **{name: value for name, value in chosen.items() if value is not None})


def spell_out(recipe: Recipe) -> Recipe:
    """The recipe with the algorithm's own numbers in place of those it does not set: what a run folder keeps."""
    algorithm = resolve(recipe.rl)
    weights = {
        "format": algorithm.format_weight,
        "accuracy": algorithm.accuracy_weight,
        "length": algorithm.length_weight,
    }
    numbers: dict[str, Any] = {
        "clip_low": algorithm.clip_low,
        "clip_high": algorithm.clip_high,
        "loss_aggregation": algorithm.loss_aggregation,
        "kl_coefficient": algorithm.kl_coefficient,
        "dynamic_sampling": algorithm.dynamic_sampling,
        "max_carry_steps": recipe.rl.carry_steps,
        "reward": recipe.rl.reward.model_copy(update=weights),
    }
    return recipe.model_copy(update={"rl": recipe.rl.model_copy(update=numbers)})
