"""What an agent reads of verl's config for each rollout, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from pathor1.prompts import SystemPrompt
from pathor1.rl.scoring import RewardWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """As an agent has them: verl's config looks a key up in tens of microseconds, and a rollout asks for twenty."""

    count: int  # answers to a question
    seed: int | None  # None = answers are not seeded
    most_prompt_tokens: int
    most_response_tokens: int
    system_prompt: SystemPrompt
    min_pixels: int
    max_pixels: int
    overlong_cache_tokens: int
    mask_truncated: bool
    weights: RewardWeights

    @classmethod
    def of(cls, config: Any) -> Self:
        """As verl's config has them."""
        rollout, ours = config.actor_rollout_ref.rollout, config.pathor1
        return cls(
            count=rollout.n,
            seed=rollout.seed if ours.seeded_answers else None,
            most_prompt_tokens=config.data.max_prompt_length,
            most_response_tokens=config.data.max_response_length,
            system_prompt=ours.system_prompt,
            min_pixels=ours.min_pixels,
            max_pixels=ours.max_pixels,
            overlong_cache_tokens=ours.overlong_cache_tokens,
            mask_truncated=bool(ours.mask_truncated),
            weights=RewardWeights(
                format=float(ours.format_weight),
                accuracy=float(ours.accuracy_weight),
                length=float(ours.length_weight),
            ),
        )
