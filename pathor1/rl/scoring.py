"""Applies `rewards/` to one rollout: its parts, their weighted sum, and the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

from rewards import (
    LETTERS,
    YES_NO,
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
    """Weights of the parts in the sum that is learned from (Patho-R1, equations 3 and 4; the paper gives no numbers).

    The defaults are GRPO's sum, format + accuracy; DAPO adds the length part: RewardWeights(length=1.0).
    """

    format: float = 1.0
    accuracy: float = 1.0
    length: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutScore:
    """What one response is worth.

    `format` and `accuracy` are 0 or 1 (`accuracy` anything from 0 to 1 where it is a function's of one's own), `length`
    is in [-1, 0], each before its weight; `total` is the weighted sum.
    `parsed` is the answer the model committed to, None = none that counts. `reason` says why, in words, on one line.
    """

    total: float
    format: float
    accuracy: float
    length: float
    parsed: str | None
    reason: str
    truncated: bool


def label_problem(answer: str, task: str) -> str | None:
    """Why no response can be compared with this right answer, or None. Tasks with a reward: "mcq" and "yes_no"."""
    if task == "mcq":
        return None if answer in LETTERS else f"the right answer {answer!r} is not a letter A-F"
    if task == "yes_no":
        return None if answer in YES_NO else f"the right answer {answer!r} is neither 'yes' nor 'no'"
    return f"no accuracy reward for task {task!r}, only for 'mcq' and 'yes_no'"


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
    accuracy: float | None = None,
) -> RolloutScore:
    """Scores one response to a question of task "mcq" or "yes_no".

    `accuracy` is what a function of one's own has said, in the place of the built-in rule.
    The length part is computed only where it has a weight, and is 0.0 otherwise; the two token limits are unused then.
    `truncated` (cut at the token limit) changes no part: a response that is cut lacks its closing tags.
    Raises ValueError for another task, a right answer that the task cannot have, and limits that
    `overlong_penalty` refuses.
    """
    if problem := label_problem(answer, task):
        raise ValueError(problem)
    if task == "mcq":
        by_rule, found = accuracy_reward(text, answer), read_letter(text)
    else:
        by_rule, found = yes_no_reward(text, answer), read_yes_no(text)
    layout = format_reward(text)
    length = 0.0
    if weights.length > 0:
        length = overlong_penalty(response_tokens, max_response_tokens, overlong_cache_tokens)
    reasons = [f"format: {format_problem(text) or 'right'}"]
    if accuracy is not None:
        reasons.append(f"accuracy: {accuracy:g} by a function of one's own")
    elif found.content is None:
        reasons.append(f"accuracy: {found.reason}")
    else:
        reasons.append(f"accuracy: {found.content} is {'right' if by_rule else f'wrong, {answer} is right'}")
    if length < 0:
        reasons.append(f"length: {response_tokens} tokens, {max_response_tokens - overlong_cache_tokens} are free")
    if truncated:
        reasons.append("cut at the token limit")
    accuracy = by_rule if accuracy is None else accuracy
    return RolloutScore(
        total=weights.format * layout + weights.accuracy * accuracy + weights.length * length,
        format=layout,
        accuracy=accuracy,
        length=length,
        parsed=found.content,
        reason="; ".join(reasons),
        truncated=truncated,
    )
