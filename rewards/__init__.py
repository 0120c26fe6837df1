"""Rewards as pure functions of text: standard library only, linear in the length of the text, never guessing.

`format_reward`, `accuracy_reward`, `yes_no_reward` and `overlong_penalty` are the rewards of Patho-R1; the other names
say what was read in a response and why it got what it got.
"""

from rewards.accuracy import accuracy_reward, yes_no_reward
from rewards.answers import LETTERS, YES_NO, Answer, read_answer, read_letter, read_yes_no
from rewards.format import format_problem, format_reward
from rewards.length import overlong_penalty

__all__ = [
    "LETTERS",
    "YES_NO",
    "Answer",
    "accuracy_reward",
    "format_problem",
    "format_reward",
    "overlong_penalty",
    "read_answer",
    "read_letter",
    "read_yes_no",
    "yes_no_reward",
]
