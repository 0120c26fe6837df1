"""Applies `rewards/` to one rollout: its parts, their weighted sum, and the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

from rewards import (
    accuracy_reward,
    format_problem,
    format_reward,
    overlong_penalty,
    read_letter,
    read_yes_no,
    yes_no_reward,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWeights:
    """Weights of the parts in the sum that is learned from (paper, equations 3 and 4; the weights are our choice)."""

    format: float = 1.0
    accuracy: float = 1.0
    length: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutScore:
    """What one answer is worth.

    `format` and `accuracy` are 0 or 1, `length` is in [-1, 0], each before its weight; `total` is the weighted sum.
    `parsed` is the answer the model committed to, None = none that counts. `reason` says why, in words.
    """

    total: float
    format: float
    accuracy: float
    length: float
    parsed: str | None
    reason: str
    truncated: bool


def score_rollout(
    text: str,
    *,
    answer: str,
    task: str,
    response_tokens: int,
    truncated: bool,
    max_response_tokens: int,
    overlong_cache_tokens: int,
    weights: RewardWeights,
) -> RolloutScore:
    """Scores one answer to a question with `task` "mcq" or "yes_no".

    The length part is counted only where it has a weight. Raises ValueError for another task, or a right answer that
    the task cannot have.
    """
    if task == "mcq":
        accuracy, found = accuracy_reward(text, answer), read_letter(text)
    elif task == "yes_no":
        accuracy, found = yes_no_reward(text, answer), read_yes_no(text)
    else:
        raise ValueError(f"no accuracy reward for task {task!r}: only mcq and yes_no can be compared exactly")
    layout = format_reward(text)
    length = overlong_penalty(response_tokens, max_response_tokens, overlong_cache_tokens) if weights.length else 0.0
    total = weights.format * layout + weights.accuracy * accuracy + weights.length * length
    reasons = [f"format: {format_problem(text) or 'right'}"]
    if found.content is None:
        reasons.append(f"accuracy: {found.reason}")
    else:
        reasons.append(f"accuracy: {found.content} is {'right' if accuracy else f'wrong, {answer} is right'}")
    if length < 0:
        reasons.append(f"length: {response_tokens} tokens of at most {max_response_tokens}")
    if truncated:
        reasons.append("cut at the token limit")
    return RolloutScore(
        total=total,
        format=layout,
        accuracy=accuracy,
        length=length,
        parsed=found.content,
        reason="; ".join(reasons),
        truncated=truncated,
    )
