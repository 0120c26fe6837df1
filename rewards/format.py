"""The format reward: does the response reason in <think>, commit in <answer>, and say nothing else?"""

from __future__ import annotations

from rewards.answers import TAGS, excerpt


def format_reward(text: str) -> float:
    """1.0 for `<think>…</think>` and `<answer>…</answer>`, each exactly once, in that order, not nested, else 0.0.

    Only white space may stand outside the two blocks, and either may be empty. Tags are lower case and exact. Source:
    Patho-R1, section 3.4, "Format Reward": 1 iff both pairs of tags appear exactly once and nothing lies outside them.
    The order, and that white space is nothing, are our reading.
    """
    return 1.0 if format_problem(text) is None else 0.0


def format_problem(text: str) -> str | None:
    """What is wrong with the format of a response, in words; None = nothing."""
    for tag in TAGS:
        count = text.count(tag)
        if count != 1:
            return f"{tag} stands {count} times, it may stand once" if count else f"no {tag}"
    starts = [text.find(tag) for tag in TAGS]
    if starts != sorted(starts):
        found = sorted(TAGS, key=text.find)
        return f"the tags stand in the order {' '.join(found)}"
    think, think_end, answer, answer_end = starts
    outside = (text[:think], text[think_end + len("</think>") : answer], text[answer_end + len("</answer>") :])
    words = next((part.strip() for part in outside if part.strip()), None)
    return None if words is None else f"text outside the tags: {excerpt(words)}"
