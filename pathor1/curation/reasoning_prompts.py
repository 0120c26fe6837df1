"""The 60 prompts by which samples are written: 5 subfields x 3 levels x 4 tasks (Patho-R1, section 3.3).

They are put together of 15 outlines (`outlines/`, how a pathologist reads that kind of picture at that depth, with what
to ask about it for each task) and 4 tasks (`tasks/`, the form of the reply). 60 rendered files would say the same
things 4 or 15 times, and a correction of one would miss the others. The words are ours: the paper's are not public.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from pathor1.curation.drafts import DRAFT_TASKS, DraftTask
from pathor1.errors import DataError
from pathor1.samples import SUBFIELDS

LEVELS = ("easy", "medium", "hard")
# Fewest and most words of all reasoning: short, medium and long chains of thought (Patho-R1, figure 2).
WORDS = {"easy": (60, 150), "medium": (150, 300), "hard": (250, 500)}
# A caption or a passage that is longer is cut: a book's page in the place of a caption is a fault of an earlier stage.
LONGEST_TEXT = 4000
MOST_REFERENCES = 6

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """How a kind of picture is reasoned about at a depth. asks: task -> what to ask for."""

    subfield: str
    level: str
    title: str
    steps: tuple[str, ...]
    pitfalls: tuple[str, ...]
    asks: dict[DraftTask, str]


@functools.cache
def outlines() -> dict[tuple[str, str], Outline]:
    """(subfield, level) -> outline, for all 15. Raises DataError for a file that has not the form of the others."""
    return {(subfield, level): _outline(subfield, level) for subfield in SUBFIELDS for level in LEVELS}


def prompt(subfield: str, level: str, task: DraftTask, *, caption: str, references: Sequence[str] = ()) -> str:
    """What the writer is told to make one sample of a picture: by its caption and what the book says of it."""
    fewest, most = WORDS[level]
    return _frame().render(
        outline=outlines()[subfield, level],
        task=task,
        form=_text(f"tasks/{task}.md").strip(),
        fewest_words=fewest,
        most_words=most,
        caption=_one_line(caption),
        references=[_one_line(reference) for reference in references[:MOST_REFERENCES]],
    )


@functools.cache
def version() -> str:
    """A digest of all words of all prompts: what was written by other words is never taken for these."""
    told = [
        prompt(subfield, level, task, caption="", references=[""])
        for subfield in SUBFIELDS
        for level in LEVELS
        for task in DRAFT_TASKS
    ]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:12]


def _outline(subfield: str, level: str) -> Outline:
    name = f"outlines/{subfield}_{level}.md"
    head, *rest = _SECTION.split(_text(name))
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    if list(sections) != ["Reason", "Beware", "Ask"]:
        raise DataError(f"{name}: its sections are {', '.join(sections) or 'none'}, not Reason, Beware, Ask")
    asks = dict(line.split(": ", 1) for line in _items(sections["Ask"], r"- "))
    if list(asks) != list(DRAFT_TASKS):
        raise DataError(f"{name}: Ask is about {', '.join(asks)}, not {', '.join(DRAFT_TASKS)}")
    return Outline(
        subfield=subfield,
        level=level,
        title=head.strip().removeprefix("# "),
        steps=_items(sections["Reason"], r"\d+\. "),
        pitfalls=_items(sections["Beware"], r"- "),
        asks={task: asks[task] for task in DRAFT_TASKS},
    )


def _items(section: str, mark: str) -> tuple[str, ...]:
    return tuple(re.sub(f"^{mark}", "", line) for line in section.splitlines() if re.match(mark, line))


def _one_line(text: str) -> str:
    """A text of a book in one line, so that none of its lines is taken for one of ours."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]}…"


@functools.cache
def _frame() -> Template:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string(_text("frame.md.jinja"))


def _text(name: str) -> str:
    return files("pathor1.curation").joinpath(name).read_text(encoding="utf-8")
