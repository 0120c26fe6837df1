"""What a model writes when it is asked for a training sample, and how that is read.

The form is tags and not JSON: the models that reason best have no mode for JSON, and escape newlines badly. A question
is `<question>…</question>`, with choices `<options>…</options>` (a line each, "A. …"), then `<think>…</think>` and
`<answer>…</answer>`. A conversation is three to six rounds of `<user>…</user><think>…</think><answer>…</answer>`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pathor1.prompts import response_text
from pathor1.samples import LETTERS, Sample, Turn
from rewards.answers import excerpt

DraftTask = Literal["multiple_choice", "description", "complex_reasoning", "multi_turn"]
DRAFT_TASKS: tuple[DraftTask, ...] = ("multiple_choice", "description", "complex_reasoning", "multi_turn")
FEWEST_ROUNDS, MOST_ROUNDS = 3, 6

_TAG = re.compile(r"<(/?)(question|options|think|answer|user)>")
_OPTION = re.compile(r"([A-F])[.)]\s+(\S.*)")
_BLOCKS = {
    "multiple_choice": ("question", "options", "think", "answer"),
    "description": ("question", "think", "answer"),
    "complex_reasoning": ("question", "think", "answer"),
    "multi_turn": ("user", "think", "answer"),
}


class MalformedError(Exception):
    """A reply that has not the form that was asked for; the message says in what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A question with reasoning and answer. Example: Round(question="…?", reasoning="…", answer="B")."""

    question: str
    reasoning: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A reply that has the form that was asked for. `rounds`: one, but for conversations."""

    task: DraftTask
    rounds: tuple[Round, ...]
    options: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that a model would learn to say, and what it would be asked."""
        return "\n".join(part for one in self.rounds for part in (one.question, one.reasoning, one.answer))

    def sample(
        self, *, id_: str, source: str, image: bytes, subfield: str, level: str, license_: str | None = None
    ) -> Sample:
        """The draft as a sample for the supervised stage. Its `problem()` says whether it can be used."""
        made = Sample(
            id=id_,
            source=source,
            task="mcq" if self.options else "open",
            question=self.rounds[0].question,
            options=self.options or None,
            answer=self.rounds[0].answer,
            images=(image,),
            subfield=subfield,
            level=level,
            explanation=self.rounds[0].reasoning,
            meta={"draft_task": self.task},
            license=license_,
        )
        if self.task != "multi_turn":
            return made
        turns: list[Turn] = []
        for one in self.rounds:
            turns.append(Turn(role="user", text=one.question))
            turns.append(Turn(role="assistant", text=response_text(one.reasoning, one.answer)))
        return replace(made, task="conversation", question="", answer="", explanation=None, turns=tuple(turns))


def read(reply: str, task: DraftTask) -> Draft:
    """A reply as a draft; what a reasoning model thinks before it is left out. Raises MalformedError."""
    wanted = _BLOCKS[task]
    blocks = _blocks(_without_own_thoughts(reply, wanted[0]), wanted)
    names = tuple(name for name, _ in blocks)
    if task == "multi_turn":
        rounds, rest = divmod(len(names), len(wanted))
        if rest or names != wanted * rounds:
            raise MalformedError(_difference(names, wanted * max(1, names.count("user"))))
        if not FEWEST_ROUNDS <= rounds <= MOST_ROUNDS:
            raise MalformedError(f"{rounds} rounds, where {FEWEST_ROUNDS} to {MOST_ROUNDS} are asked for")
    elif names != wanted:
        raise MalformedError(_difference(names, wanted))
    for name, text in blocks:
        if not text:
            raise MalformedError(f"<{name}> is empty")
    texts = [text for _, text in blocks]
    if task == "multiple_choice":
        question, options, reasoning, answer = texts
        one = Round(question=question, reasoning=reasoning, answer=answer)
        return Draft(task=task, rounds=(one,), options=_options(options))
    found = [
        Round(question=texts[place], reasoning=texts[place + 1], answer=texts[place + 2])
        for place in range(0, len(texts), 3)
    ]
    return Draft(task=task, rounds=tuple(found))


def _without_own_thoughts(reply: str, first: str) -> str:
    """Without what a reasoning model thinks in a <think> of its own, which a server may leave in the reply."""
    start = reply.find(f"<{first}>")
    before = reply[:start]
    own = before.rstrip().endswith("</think>") and before.count("</think>") == 1
    return reply[start:] if start > 0 and own else reply


def _blocks(text: str, wanted: Sequence[str]) -> list[tuple[str, str]]:
    """Name and stripped content of each block, in order."""
    found: list[tuple[str, str]] = []
    end, open_name, start = 0, None, 0
    for tag in _TAG.finditer(text):
        closes, name = tag.group(1) == "/", tag.group(2)
        if open_name is None:
            if closes:
                raise MalformedError(f"</{name}> without <{name}> before it")
            _nothing_outside(text[end : tag.start()])
            open_name, start = name, tag.end()
        elif closes and name == open_name:
            found.append((name, text[start : tag.start()].strip()))
            open_name, end = None, tag.end()
        else:
            raise MalformedError(f"<{'/' if closes else ''}{name}> inside <{open_name}>")
    if open_name is not None:
        raise MalformedError(f"<{open_name}> is never closed")
    if not found:
        raise MalformedError(f"no <{wanted[0]}>")
    _nothing_outside(text[end:])
    return found


def _nothing_outside(text: str) -> None:
    if text.strip():
        raise MalformedError(f"text outside the tags: {excerpt(text.strip())}")


def _difference(names: Sequence[str], wanted: Sequence[str]) -> str:
    there, asked = Counter(names), Counter(wanted)
    for name in dict.fromkeys([*wanted, *names]):
        if there[name] < asked[name]:
            return f"no <{name}>" if not there[name] else f"<{name}> stands {there[name]} times, not {asked[name]}"
        if there[name] > asked[name]:
            return (
                f"<{name}> stands {there[name]} times, not {asked[name]}" if asked[name] else f"<{name}> has no place"
            )
    return f"the tags stand in the order {' '.join(names)}"


def _options(text: str) -> tuple[str, ...]:
    found: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _OPTION.fullmatch(line)
        if match is None or len(found) == len(LETTERS) or match.group(1) != LETTERS[len(found)]:
            raise MalformedError(f"an option is not on a line of its own with the next letter: {excerpt(line)}")
        found.append(match.group(2).strip())
    return tuple(found)
