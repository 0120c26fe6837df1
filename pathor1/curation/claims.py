"""What a sample says of its picture and the text that it was written from does not contain.

The writer has not seen the picture: a stain, a measure or a finding that neither caption nor references name is
invented. What is said in general, of what one would see or ask for, is no claim of this picture. Terms are those of
`vocabulary.toml`; what it does not list is not found, so that the rule errs by letting pass.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

from pathor1.curation.vocabulary import vocabulary

_SENTENCE = re.compile(r"(?<=[.!?;])\s+(?=[A-Z(])|\n+")
_TIMES, _MICRO = "\N{MULTIPLICATION SIGN}", "[\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}u]"
_NUMBER = r"\d+(?:[.,]\d+)?"
_MEASURE = re.compile(
    # 40%, 6.5 cm, 52-year-old, 400x
    rf"(?P<number>{_NUMBER})\s?(?:%|per ?cent|x\b|{_TIMES}|mm|cm|{_MICRO}m|"
    r"microns?|kg|g|months?|weeks?|[- ]?years?(?:[- ]old)?|per (?:10|ten) high|/10 ?HPF|/mm|signals?|mitoses)(?!\w)|"
    # ratio of 2.4, grade 3
    rf"(?:ratio|score|grade|Gleason|proportion|index)\s(?:of\s|is\s|was\s|=\s?|:\s?)?(?P<value>{_NUMBER})|"
    # x400
    rf"(?:\bx|{_TIMES})\s?(?P<power>{_NUMBER})|"
    r"(?P<stage>\bp?T[0-4][a-d]?(?:N[0-3][a-c]?)?\b)",
    re.IGNORECASE,
)
_PATIENT = re.compile(r"\b(?:man|woman|boy|girl|male|female|infant|child|smoker|pregnant)\b", re.IGNORECASE)
_GREEK = [
    (unicodedata.lookup(f"GREEK SMALL LETTER {name}"), word)
    for name, word in (
        ("ALPHA", "alpha"),
        ("BETA", "beta"),
        ("GAMMA", "gamma"),
        ("KAPPA", "kappa"),
        ("LAMDA", "lambda"),
    )
]
_DASHES = re.compile("[\u2010-\u2015]")
_SHORT = 4  # markers of so few letters are words when written small: "ER", "RET", "er", "ret"


def unsupported(text: str, known: str) -> str | None:
    """The first claim of a text that `known` (caption and references) does not contain; None = there is none."""
    known_words = _plain(known)
    known_numbers = {_decimal(number) for number in re.findall(_NUMBER, known)}
    for sentence in _SENTENCE.split(text):
        if _general().search(sentence) or sentence.rstrip().endswith("?"):
            continue
        for claim in _claims(sentence, known_words, known_numbers):
            return f"{claim} in: {' '.join(sentence.split())[:80]}"
    return None


def _claims(sentence: str, known: str, numbers: set[str]) -> Iterator[str]:
    for match in _MEASURE.finditer(sentence):
        value = match.group("number") or match.group("value") or match.group("power")
        if value is not None and _decimal(value) not in numbers:
            yield match.group().strip()
        if match.group("stage") and match.group().lower() not in known.lower():
            yield match.group()
    if (patient := _PATIENT.search(sentence)) and not _PATIENT.search(known):
        yield patient.group()
    plain = _plain(sentence)
    for pattern in _things():
        if (thing := pattern.search(plain)) and not pattern.search(known):
            yield thing.group()


@functools.cache
def _things() -> list[re.Pattern[str]]:
    """A pattern for each thing, which finds any of its names."""
    return [
        re.compile(rf"(?<![\w/-])(?:{'|'.join(map(_name, names))})(?![\w/])(?!-\d)")
        for group in ("markers", "findings")
        for names in vocabulary()[group]
    ]


@functools.cache
def _general() -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(vocabulary()['general'])})\b|[≥≤]", re.IGNORECASE)


def _name(name: str) -> str:
    """A name's pattern: hyphens may be left out or be spaces; case counts where it tells a marker from a word."""
    plain = re.escape(_plain(name)).replace(r"\-", "[- ]?").replace(r"\ ", "[- ]")
    return plain if len(name) <= _SHORT and name.isupper() else f"(?i:{plain})"


def _plain(text: str) -> str:
    """Greek letters spelled out and dashes made hyphens, as captions have either."""
    for letter, word in _GREEK:
        text = text.replace(letter, word)
    return _DASHES.sub("-", text)


def _decimal(number: str) -> str:
    return number.replace(",", ".")
