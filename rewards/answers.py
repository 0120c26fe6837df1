"""Reads the tags and the answer out of a response, with a reason wherever there is nothing to read.

A response is what a model said: it is untrusted, may be a megabyte of tags, and is never evaluated or guessed at.
Tags are found with `str.count` and `str.find`, which are linear in the length of the text whatever the text is; the
paper's regular expression is not used, because on repeated tags it can backtrack.
"""

from __future__ import annotations

from dataclasses import dataclass

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
LETTERS = ("A", "B", "C", "D", "E", "F")  # a tuple: "" and "AB" are in the text "ABCDEF", but are no letters
YES_NO = ("yes", "no")

_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Answer:
    """What a response committed to. `content` is None exactly when there is a `reason` why nothing can be read."""

    content: str | None
    reason: str | None


def read_answer(text: str) -> Answer:
    """The stripped content of the response's only `<answer>…</answer>` block.

    Examples: "<answer> B </answer>" -> Answer("B", None); "B" -> Answer(None, "no <answer> block").
    """
    opened, closed = text.count("<answer>"), text.count("</answer>")
    if opened > 1 or closed > 1:
        return Answer(None, f"{max(opened, closed)} answer blocks, one may stand")
    if not opened and not closed:
        return Answer(None, "no <answer> block")
    if not closed:
        return Answer(None, "<answer> is never closed")
    start, end = text.find("<answer>"), text.find("</answer>")
    if not opened or end < start:
        return Answer(None, "</answer> without <answer> before it")
    content = text[start + len("<answer>") : end].strip()
    return Answer(content, None) if content else Answer(None, "the <answer> block is empty")


def read_letter(text: str) -> Answer:
    """The answer where it is exactly one of the letters A-F: "B", but not "b", "B.", "(B)", "B or C"."""
    found = read_answer(text)
    if found.content is None or found.content in LETTERS:
        return found
    return Answer(None, f"answer {excerpt(found.content)} is not a single letter A-F")


def read_yes_no(text: str) -> Answer:
    """The answer where it is exactly yes or no, in upper or lower case, as "yes" or "no".

    Case is free here, unlike in the letters, whose strictness is the paper's: "Yes" is how a sentence begins and says
    the same. "Yes." and "yes, because" are still no answers.
    """
    found = read_answer(text)
    if found.content is None:
        return found
    word = found.content.lower()
    return Answer(word, None) if word in YES_NO else Answer(None, f"answer {excerpt(found.content)} is not yes or no")


def excerpt(text: str) -> str:
    """The beginning of a model's words as one quoted line in which control characters are escaped."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")
