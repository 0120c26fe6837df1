"""Endless repetition, which sampled reasoning falls into: a text that turns in a circle says little that is new."""

from __future__ import annotations

import re
from collections import Counter

# So often may a sentence of some length stand; a refrain is not yet a circle.
MOST_SENTENCES = 2
SENTENCE_WORDS = 5
# Of all runs of so many words the share that has stood before; prose of pathology stays below a tenth.
RUN_WORDS = 6
MOST_REPEATED = 0.3
FEWEST_WORDS = 40
# The same few words so often in a row.
IN_A_ROW = 4
LONGEST_PERIOD = 12

_WORD = re.compile(r"\w+(?:[-'/]\w+)*")
_DIGITS = re.compile(r"\d+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def repetition(text: str) -> str | None:
    """How a text repeats itself, in words; None = it does not. Linear in the length of the text."""
    # Padding counts: "point 1 …, point 2 …" says the same each time.
    words = [_DIGITS.sub("0", word.lower()) for word in _WORD.findall(text)]
    if found := _in_a_row(words):
        return found
    sentences = Counter(" ".join(_WORD.findall(part.lower())) for part in _SENTENCE.split(text))
    for sentence, count in sentences.items():
        if count > MOST_SENTENCES and sentence.count(" ") + 1 >= SENTENCE_WORDS:
            return f"{count} times the sentence: {sentence[:60]}"
    if len(words) >= FEWEST_WORDS:
        runs = [tuple(words[place : place + RUN_WORDS]) for place in range(len(words) - RUN_WORDS + 1)]
        repeated = 1 - len(set(runs)) / len(runs)
        if repeated > MOST_REPEATED:
            return f"{repeated:.0%} of its runs of {RUN_WORDS} words stand in it before"
    return None


def _in_a_row(words: list[str]) -> str | None:
    """A run of 1 to LONGEST_PERIOD words that stands IN_A_ROW times in a row."""
    for period in range(1, LONGEST_PERIOD + 1):
        same = 0
        for place in range(period, len(words)):
            same = same + 1 if words[place] == words[place - period] else 0
            if same >= period * (IN_A_ROW - 1):
                return f"{IN_A_ROW} times in a row: {' '.join(words[place - period + 1 : place + 1])[:60]}"
    return None
