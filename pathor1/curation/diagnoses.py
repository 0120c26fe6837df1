"""What a picture's caption says of its diagnosis and tissue system: asked of a model, and checked against the text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

SYSTEMS = (
    "breast", "cardiovascular", "digestive", "endocrine", "eye and ear", "female genital", "haematolymphoid",
    "head and neck", "hepatobiliary and pancreas", "male genital", "nervous", "respiratory", "skin",
    "soft tissue and bone", "urinary", "other",
)  # fmt: skip
LONGEST_WORDS = 12  # of a diagnosis; what is longer is a description

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")
_ARTICLES = frozenset({"a", "an", "the"})


class NoFactError(Exception):
    """A reply that says nothing that can be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a picture is. Example: Facts(diagnosis="Papillary thyroid carcinoma", system="endocrine")."""

    diagnosis: str
    system: str


def prompt(caption: str, references: Sequence[str]) -> str:
    """What the model is told."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    text = files("pathor1.curation").joinpath("tasks/facts.md.jinja").read_text(encoding="utf-8")
    references = [" ".join(reference.split()) for reference in references]
    return environment.from_string(text).render(
        systems=SYSTEMS, caption=" ".join(caption.split()), references=references
    )


def read(reply: str, known: str) -> Facts:
    """The facts of a reply, whose diagnosis has to stand in `known`, caption and references, word for word.

    Raises NoFactError for anything else: a model that has not seen the picture may know what it would be in general.
    """
    text = _FENCE.sub("", reply[reply.rfind("</think>") + len("</think>") :] if "</think>" in reply else reply).strip()
    text = _FENCE.sub("", text)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise NoFactError("not_json") from None
    if not isinstance(found, dict) or found.keys() != {"diagnosis", "system"}:
        raise NoFactError("not_json")
    diagnosis, system = found["diagnosis"], found["system"]
    if diagnosis is None:
        raise NoFactError("no_diagnosis")
    if not isinstance(diagnosis, str) or system not in SYSTEMS:
        raise NoFactError("not_a_system" if isinstance(diagnosis, str) else "not_json")
    words = key(diagnosis)
    if not 0 < len(words) <= LONGEST_WORDS:
        raise NoFactError("not_a_diagnosis")
    if not _stands_in(words, key(known)):
        raise NoFactError("not_in_the_text")
    return Facts(diagnosis=_shown(diagnosis), system=system)


def key(text: str) -> tuple[str, ...]:
    """The words by which two diagnoses are the same: without case, punctuation and articles."""
    return tuple(word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES)


def excludes(one: str, other: str) -> bool:
    """Whether two diagnoses may stand beside each other: neither says all that the other says, and more.

    Example: "adenocarcinoma" may not stand beside "adenocarcinoma of the colon": both would be right.
    """
    first, second = set(key(one)), set(key(other))
    return not (first <= second or second <= first)


def _stands_in(words: tuple[str, ...], text: tuple[str, ...]) -> bool:
    return any(text[place : place + len(words)] == words for place in range(len(text) - len(words) + 1))


def _shown(diagnosis: str) -> str:
    """As an option: without the full stop, with a capital letter."""
    text = " ".join(diagnosis.split()).rstrip(".;,")
    return text[:1].upper() + text[1:]
