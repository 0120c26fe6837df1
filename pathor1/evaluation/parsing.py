"""What a response chose, read strictly and leniently. Nothing is guessed: what cannot be read is no answer.

Strict is the rule of the reward: the answer block holds exactly a letter A-F, or yes or no. Lenient also reads what a
person would: "(B)", "B. adenocarcinoma", the text of an option, "the answer is B", with or without the block. Where a
response can be read as two answers it is read as none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pathor1.samples import LETTERS, Sample
from rewards import read_letter, read_yes_no

# A final answer is short; what is looked through is bounded, whatever a response holds.
LONGEST = 2000

_LEAD = re.compile(
    r"(?:(?:the )?(?:final |correct |best )?(?:answer|option|choice)(?: is)?\s*[:=]?\s*)+", re.IGNORECASE
)
# "B", "(B)", "B.", "B) text", "B: text", "b", "b)"; what goes on as a word or a sentence ("A lesion ...") is no letter.
_LETTER = re.compile(r"\(([A-Fa-f])\)|([A-F])(?=\s*$|\s*[.):,;])|([a-f])(?=\s*$|\s*\))")
_SAID = re.compile(
    r"\b(?i:answer|correct (?:option|choice))(?:\s+is)?\s*[:=]?\s*(?i:option\s+)?[(*\"']{0,3}"
    r"([B-F]\b|A\b(?!\s+[a-z]))(?!['\u2019])"
)
_YES_NO = re.compile(r"(yes|no)\b(?=\s*$|\s*[.,:;!])", re.IGNORECASE)
_SAID_YES_NO = re.compile(r"\banswer(?:\s+is)?\s*[:=]?\s*[*\"']{0,3}(yes|no)\b", re.IGNORECASE)
_MARKS = re.compile(r"[*`$\"\u201c\u201d]|\\boxed|\\text|[{}]")


def strict(text: str, sample: Sample) -> str | None:
    """The letter, or yes or no, where the reward's rule reads one; None = it cannot be read."""
    found = (read_yes_no if sample.task == "yes_no" else read_letter)(text)
    return found.content


def lenient(text: str, sample: Sample) -> str | None:
    """The letter among the question's options, or yes or no, where there is one reading and no other."""
    if (found := strict(text, sample)) is not None and _is_possible(found, sample):
        return found
    final, in_block = _final(text)
    read = _yes_no if sample.task == "yes_no" else _option
    if (found := read(final, sample.options or ())) is not None or in_block:
        return found
    # Without a block: what the end says is the answer, if it says so once.
    said = _SAID_YES_NO if sample.task == "yes_no" else _SAID
    named = {_of_case(match, sample) for match in said.findall(text[-LONGEST:])}
    named = {name for name in named if _is_possible(name, sample)}
    return named.pop() if len(named) == 1 else None


def _final(text: str) -> tuple[str, bool]:
    """What the response commits to, without marks of style, and whether it stood in an answer block."""
    blocks = {_plain(part.partition("</answer>")[0]) for part in text.split("<answer>")[1:]}
    if blocks:
        return (blocks.pop(), True) if len(blocks) == 1 else ("", True)  # two that differ are no answer
    return _plain(text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text), False


def _plain(text: str) -> str:
    return " ".join(_MARKS.sub(" ", text[: LONGEST + 1]).split())


def _option(final: str, options: Sequence[str]) -> str | None:
    if len(final) > LONGEST:
        return None
    if (named := _same_text(final, options)) is not None:
        return named
    rest = _without_lead(final)
    if (named := _same_text(rest, options)) is not None:
        return named
    match = _LETTER.match(rest)
    if match is None:
        return None
    letter = next(group for group in match.groups() if group).upper()
    if letter not in LETTERS[: len(options)]:
        return None
    return letter if _goes_with(rest[match.end() :].lstrip(" .):,;-"), letter, options) else None


def _without_lead(final: str) -> str:
    lead = _LEAD.match(final)
    return final[lead.end() :] if lead else final


def _goes_with(following: str, letter: str, options: Sequence[str]) -> bool:
    """Whether what follows a letter is nothing, or its option's text, shortened or gone on from.

    "A. naevus" where naevus is B is two answers, as "B, C" and "A or B" are; "E. coli" is no letter at all.
    """
    if not following:
        return True
    if _LETTER.match(following) or _same_text(following, options) not in (None, letter):
        return False
    said, option = _bare(following), _bare(options[LETTERS.index(letter)])
    return said.startswith(option) or option.startswith(said)


def _same_text(text: str, options: Sequence[str]) -> str | None:
    """The letter of the only option that says exactly this; case, spaces and a full stop at the end aside."""
    wanted = _bare(text)
    same = [letter for letter, option in zip(LETTERS, options, strict=False) if _bare(option) == wanted]
    return same[0] if len(same) == 1 and wanted else None


def _bare(text: str) -> str:
    return " ".join(_MARKS.sub(" ", text).split()).rstrip(" .").casefold()


def _yes_no(final: str, options: Sequence[str]) -> str | None:
    del options
    if len(final) > LONGEST:
        return None
    match = _YES_NO.match(_without_lead(final))
    return match.group(1).lower() if match else None


def _of_case(name: str, sample: Sample) -> str:
    return name.lower() if sample.task == "yes_no" else name.upper()


def _is_possible(name: str, sample: Sample) -> bool:
    return sample.task == "yes_no" or name in LETTERS[: len(sample.options or ())]
