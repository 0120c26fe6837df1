"""Which replies become samples: rules that each say why not, and the samples that a person should look at.

Patho-R1 names language mixing in terms and endless repetition as what its writer did wrong (section 3.3), and its
figure 2 hallucination; it does not give its rules. These are ours, and `docs/curation.md` has how often each is right
on texts that were labelled by hand.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pathor1.curation.claims import unsupported
from pathor1.curation.drafts import Draft, DraftTask, MalformedError, read
from pathor1.curation.language import foreign
from pathor1.curation.repetition import repetition
from pathor1.samples import LETTERS

_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# Words that every question may have; the rest of an answer gives it away.
_COMMON = (
    "a an and are as at by for from in into is it of on or the this that to with which what who diagnosis finding best "
    "most likely following fits shown picture image cell cells tissue type"
)
_EMPTY = frozenset(_COMMON.split())
_SOURCES = "captions?|legends?|text|textbook|passage|excerpt|references?|description|context|information|paper|book"
_SOURCE = re.compile(
    # "the caption", "this image's legend": no picture has one of its own
    r"\b(?:captions?|legends?|textbook)\b|"
    # "the provided description", "the accompanying text", "the text provided", but not "what the stain provided"
    r"\b(?:provided|given|accompanying|supplied|quoted|cited|source|reference)\s+(?:figure\s+|image\s+)?"
    rf"(?:{_SOURCES}|sentences?|details?)\b|\b(?:{_SOURCES})\s+(?:provided|given|supplied)\b(?!\s+by)|"
    # "according to the text", "as stated in the description"
    r"\b(?:according to|as (?:stated|described|noted|mentioned|given|written|reported) (?:in|by)|from|based on|per|in) "
    r"the (?:text|description|references?|passage|paper|book)\b|"
    # "the text says", "the authors call it"
    r"\bthe (?:text|book|passage|references?|description|paper|chapter|authors?)(?: here| also| itself)? "
    r"(?:says?|states?|describes?|mentions?|notes?|tells?|adds?|calls?|names?|points?|reports?|explains?|indicates?|"
    r"emphasi[sz]es?|speaks?|does not (?:say|state|mention|name|tell|describe))\b|"
    r"\b(?:we|one) (?:is|are) told\b|\bit is (?:written|stated) that\b|"
    # "Figure 3-2", "the figure above": of the book, whose numbers a picture alone has not
    r"\bfig(?:ure|\.)?s?\s*[A-Z]?\d|\bfigures? (?:above|below)\b",
    re.IGNORECASE,
)
# Where reasoning says which option it takes, in the forms that writers close with; "A to D" are panels.
_LETTER = r"\(?(?P<letter{0}>[A-F])\)?"
_TAKES = re.compile(
    r"\b(?i:answer|option|choice|choose|select|pick|settle on|(?<![A-F] )to|is|be|of|with|leav(?:es?|ing)|remains|"
    rf"makes?|hence|thus|therefore|so),?:?\s+(?i:(?:option|choice|answer)\s+)?{_LETTER.format(1)}(?=\s*(?:[.;:)!*]|$))|"
    rf"\b(?i:option|choice|answer|makes|leaves)\s+{_LETTER.format(2)}(?=\s)|"
    rf"\((?P<letter3>[A-F])\)|"
    rf"(?:^|[,;]\s|\b(?i:therefore|thus|hence|so)\s){_LETTER.format(4)}\s+(?:is|fits|remains|must|it is)\b"
)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so|correct|right|best|answer|diagnosis|consistent|conclu\w+|points? to|fits?|leaves?|"
    r"remains?|supports?|confirms?|together|overall)\b",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\b(?:not|no|nor|never|neither|wrong|incorrect|unlike|unlikely|less|exclud\w*|eliminat\w*|reject\w*|against|"
    r"rather than|instead of|rules? out|ruled out|would)\b",
    re.IGNORECASE,
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_CLAUSES = re.compile(r"[,;:]\s+(?!\(?[A-F]\b\)?\s*(?:[.;)*]|$))")  # "thus, A." is one


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A reply of the writer, and what it was written from. Example: Written(task="description", reply="<question>…",
    caption="…", references=("…",))."""

    task: DraftTask
    reply: str
    caption: str
    references: tuple[str, ...] = ()
    finish: str = "stop"  # "length" = the reply was cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a sample may be, in words: of what the model would learn to say, over all rounds."""

    most_words: int = 1000
    most_question_words: int = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that a reply breaks, and how."""

    rule: str
    reason: str


Rule = Callable[[Draft, Written, Limits], str | None]


def findings(written: Written, limits: Limits) -> tuple[Draft | None, list[Finding]]:
    """The reply as a draft, None where it has not the form, and all that is wrong with it. Nothing = it is kept."""
    found = [Finding(rule="too_long", reason="cut at the longest reply")] if written.finish == "length" else []
    if said := repetition(written.reply):  # also of replies whose tags never come to an end
        found.append(Finding(rule="repetition", reason=said))
    if said := foreign(written.reply):
        found.append(Finding(rule="language", reason=said))
    try:
        draft = read(written.reply, written.task)
    except MalformedError as error:
        return None, [*found, Finding(rule="tags", reason=str(error))]
    for name, rule in RULES.items():
        if reason := rule(draft, written, limits):
            found.append(Finding(rule=name, reason=reason))
    return draft, found


def not_an_option(draft: Draft, written: Written, limits: Limits) -> str | None:
    """Options that are none, an answer that is no letter of one, or reasoning that ends at another letter."""
    del written, limits
    if draft.task != "multiple_choice":
        return None
    if len(draft.options) < 2:
        return f"{len(draft.options)} options"
    if len({_key(option) for option in draft.options}) != len(draft.options):
        return "two options have the same text"
    one = draft.rounds[0]
    if one.answer not in tuple(LETTERS[: len(draft.options)]):
        return f"the answer {one.answer[:40]!r} is none of the {len(draft.options)} options"
    said = _ends_at(one.reasoning, draft.options)
    if said is not None and said != one.answer:
        return f"the reasoning ends at {said} and the answer is {one.answer}"
    return None


def _ends_at(reasoning: str, options: Sequence[str]) -> str | None:
    """The letter that the reasoning takes last, in a clause that does not deny it; else the only option that its last
    sentence names, where that concludes. None where it says neither.
    """
    sentences = [each for each in _SENTENCES.split(reasoning.strip()) if each]
    for sentence in reversed(sentences):
        clauses = [clause for clause in _CLAUSES.split(sentence) if not _DENIES.search(clause)]
        taken = [each.group(each.lastgroup or 0) for clause in clauses for each in _TAKES.finditer(clause)]
        if taken:
            return taken[-1]
    last = sentences[-1] if sentences else ""
    if not _CONCLUDES.search(last) or _DENIES.search(last):
        return None
    named = [letter for letter, option in zip(LETTERS, options, strict=False) if _key(option) in _key(last)]
    return named[0] if len(named) == 1 else None


def given_away(draft: Draft, written: Written, limits: Limits) -> str | None:
    """A question that holds its answer: the words of the right option that no other has, or the open answer."""
    del written, limits
    for one in draft.rounds:
        asked = set(_WORD.findall(_key(one.question)))
        if draft.task == "multiple_choice" and one.answer in tuple(LETTERS[: len(draft.options)]):
            right = draft.options[LETTERS.index(one.answer)]
            others = {word for option in draft.options if option is not right for word in _words(option)}
            telling = _words(right) - others
        elif len(_words(one.answer)) <= 8:  # a longer one repeats words of the question as it has to
            right = one.answer
            telling = _words(right)
            if _key(right) in ("yes", "no"):
                continue
        else:
            continue
        if telling and telling <= asked:
            return f"the question says: {right[:60]}"
    return None


def speaks_of_its_source(draft: Draft, written: Written, limits: Limits) -> str | None:
    """A sample that refers to the caption or the book: who learns from it sees the picture alone."""
    del written, limits
    match = _SOURCE.search(draft.text)
    return f"it refers to its source: {' '.join(match.group().split())}" if match else None


def not_in_the_source(draft: Draft, written: Written, limits: Limits) -> str | None:
    """A stain, a measure, a patient or a finding that neither caption nor references name (`claims`)."""
    del limits
    wrong = [option for letter, option in zip(LETTERS, draft.options, strict=False) if letter != draft.rounds[0].answer]
    return unsupported(draft.text, "\n".join([written.caption, *written.references]), wrong)


def too_long(draft: Draft, written: Written, limits: Limits) -> str | None:
    """More words than `limits` allow."""
    del written
    said = sum(len(one.reasoning.split()) + len(one.answer.split()) for one in draft.rounds)
    asked = max(len(one.question.split()) for one in draft.rounds)
    if said > limits.most_words:
        return f"{said} words, {limits.most_words} are the most"
    return f"a question of {asked} words" if asked > limits.most_question_words else None


RULES: Mapping[str, Rule] = {
    "not_an_option": not_an_option,
    "given_away": given_away,
    "speaks_of_its_source": speaks_of_its_source,
    "not_in_the_source": not_in_the_source,
    "too_long": too_long,
}
RULE_NAMES = ("tags", "language", "repetition", *RULES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How often a rule is right. precision, recall: None where it never fired, or never should."""

    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float | None:
        """Of the replies that it drops, the share that it should."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None

    @property
    def recall(self) -> float | None:
        """Of the replies that it should drop, the share that it does."""
        return self.right / (self.right + self.missed) if self.right + self.missed else None


def scores(labelled: Iterable[tuple[Written, Sequence[str]]], limits: Limits) -> dict[str, Score]:
    """Precision and recall of each rule on replies with the rules that they break, by a person."""
    counts = {name: [0, 0, 0] for name in RULE_NAMES}
    for written, labels in labelled:
        fired = {finding.rule for finding in findings(written, limits)[1]}
        for name, count in counts.items():
            count[0] += name in fired and name in labels
            count[1] += name in fired and name not in labels
            count[2] += name not in fired and name in labels
    return {name: Score(right=right, wrong=wrong, missed=missed) for name, (right, wrong, missed) in counts.items()}


def to_look_at(rules: Mapping[str, Sequence[str]], *, each: int, seed: int) -> dict[str, list[str]]:
    """`each` ids of those kept ("kept"), and of those that each rule drops: the same ones for the same seed.

    rules: id -> the rules that it breaks, none where it is kept.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for id_, names in rules.items():
        for name in names or ("kept",):
            groups[name].append(id_)
    return {name: sorted(ids, key=lambda id_: _order(seed, id_))[:each] for name, ids in sorted(groups.items())}


def _order(seed: int, id_: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{id_}".encode(), digest_size=8).digest()


def _key(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _words(text: str) -> set[str]:
    return set(_WORD.findall(_key(text))) - _EMPTY
