"""Accuracy rewards for questions whose answer can be compared exactly."""

from __future__ import annotations

from rewards.answers import read_letter, read_yes_no


def accuracy_reward(text: str, answer: str) -> float:
    """1.0 when the response's only answer block holds exactly one letter A-F and it is `answer`, else 0.0.

    "A.", "(A)", "A or B", "a", an empty block and two blocks are 0.0, and so is any response where `answer` itself is
    no letter A-F. White space around the letter is ignored. Source: Patho-R1, section 3.4, "Accuracy Reward": only an
    exact match to one of A-F is accepted.
    """
    return 1.0 if read_letter(text).content == answer else 0.0


def yes_no_reward(text: str, answer: str) -> float:
    """1.0 when the response's only answer block says exactly `answer`, "yes" or "no", else 0.0.

    Upper and lower case are the same on both sides. The counterpart of `accuracy_reward` for closed questions; the
    paper trains on letters only.
    """
    return 1.0 if read_yes_no(text).content == answer.lower() else 0.0
