"""What a sample says of its picture and the text that it was written from does not contain.

The writer has not seen the picture: a stain, a measure, a patient or a finding that neither caption nor references name
is invented. What is said in general, of what one would see or ask for, is no claim of this picture, nor is what is said
of another disease to tell it apart. Terms are those of `vocabulary.toml`; what it does not list is not found, so that
the rule errs by letting pass.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence

from pathor1.curation.vocabulary import vocabulary

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z(])|\n+")
# Clauses of which one may be in general and the next is not: "…, which would be expected in sprue".
_CLAUSE = re.compile(r";\s+|,?\s+(?=(?:but|while|whereas|which (?:would|could|might|may|can|should)(?: also)?)\b)")
_GOES_ON = re.compile(r"(?:but|which|it|its|they|their)\b", re.IGNORECASE)
# A clause that begins with a disease: "A follicular adenoma has round nuclei".
_DISEASE = re.compile(
    r"(?P<lead>(?:(?:and|but|while|whereas|in|an?|most|some|many|all|typical|classical|the|this|these|our)\s+)*)"
    r"(?P<name>(?:[\w'/-]+\s+){0,4}?[\w'-]*(?:omas?|omata|itis|a?emias?|diseases?|syndromes?|infections?|"
    r"hyperplasias?|na?ev(?:us|i)|cirrhosis|sarcoidosis|tuberculosis|endometriosis|adenosis|polyps?))\b",
    re.IGNORECASE,
)
# Ends as those do, and is a finding.
_NO_DISEASE = re.compile(r"stroma|granulomas?|ha?ematomas?|vasculitis|ana?emia", re.IGNORECASE)
_TIMES, _MICRO = "\N{MULTIPLICATION SIGN}", "[\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}u]"
_NUMBER = r"\d+(?:[.,]\d+)?"
_MEASURE = re.compile(
    # 40%, 6.5 cm, 52-year-old, 400x
    rf"(?P<number>{_NUMBER})\s?(?:%|per ?cent|x\b|{_TIMES}|mm|cm|{_MICRO}m|(?:centi|milli|micro)met(?:re|er)s?|"
    r"microns?|kg|g|(?:kilo)?grams?|months?|weeks?|[- ]?years?(?:[- ]old)?|per (?:10|ten) high|/10 ?HPF|/mm|signals?|"
    r"mitoses)(?!\w)|"
    # ratio of 2.4, ratio is above 6, grade 3
    rf"(?:ratio|score|grade|Gleason|proportion|index)\s(?:[a-z]+\s|[=:]\s?){{0,2}}(?P<value>{_NUMBER})|"
    # x400
    rf"(?:\bx|{_TIMES})\s?(?P<power>{_NUMBER})|"
    # 62 of 100 nuclei; 60 nuclei: of fewer it may be seen, or said, otherwise ("binucleate")
    rf"(?P<share>{_NUMBER})\s(?:out\s)?of\s(?:the\s)?(?=\d)|"
    r"(?P<count>[5-9]|[1-9]\d+)\s(?:[a-z]+\s)?(?:nuclei|cells|foci|lymph nodes|nodes|lesions|nodules|fields)\b|"
    r"(?P<stage>\bp?T[0-4][a-d]?(?:N[0-3][a-c]?)?\b)",
    re.IGNORECASE,
)
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred")
_WORDS = {
    **{word: place for place, word in enumerate(_ONES)},
    **{word: 10 * place for place, word in enumerate(_TENS, start=2)},
}
_NUMBER_WORD = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?:-(?P<ones>{'|'.join(_ONES[1:10])}))?|(?P<one>{'|'.join(_ONES)}))\b",
    re.IGNORECASE,
)
# What has been with a patient; that there is one is known.
_HISTORY = re.compile(
    r"\b(?:history of|presented with|complain(?:s|ed|ing) of|patient (?:had|has|was|is|underwent|received|died)|"
    r"(?:was|were) (?:admitted|treated|operated))\b",
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
_VALUES = ("number", "value", "power", "share", "count")
# Words of a clause that are its subject, more or less.
_SUBJECT = 6
_SHORT = 4  # markers of so few letters are words when written small: "ER", "RET", "er", "ret"


def unsupported(text: str, known: str, others: Sequence[str] = ()) -> str | None:
    """The first claim of a text that `known` (caption and references) does not contain; None = there is none.

    others: what the text tells this picture apart from, such as the wrong options of a question.
    """
    known_words = _plain(known)
    known_numbers = {_decimal(number) for number in re.findall(_NUMBER, _digits(known))}
    apart = {word for other in others for word in _content(other)} - _content(known)
    another = False
    for sentence in _SENTENCE.split(text):
        if sentence.rstrip().endswith("?"):
            continue
        for clause in _CLAUSE.split(sentence):
            another = _is_of_another(clause, known, apart) or (another and _GOES_ON.match(clause) is not None)
            if another or _general().search(clause):
                continue
            for claim in _claims(clause, known_words, known_numbers):
                return f"{claim} in: {' '.join(sentence.split())[:80]}"
    return None


def _is_of_another(clause: str, known: str, apart: set[str]) -> bool:
    """Whether a clause begins with another disease than that of `known`, or with a word of what it is told apart from.

    "The adenoma" is this one, whatever the caption calls it.
    """
    if any(word in apart for word in _content(" ".join(clause.split()[:_SUBJECT]))):
        return True
    found = _DISEASE.match(clause)
    if found is None or _NO_DISEASE.search(found["name"]):
        return False
    this = re.search(r"\b(?:the|this|these|our)\b", found["lead"], re.IGNORECASE) is not None
    return not this and not _content(found["name"]) <= _content(known)


def _content(text: str) -> set[str]:
    """Its words without case and plural, of four letters or more, or with a digit."""
    found = re.findall(r"[^\W_]+", text.casefold())
    return {word.removesuffix("s") for word in found if len(word) >= 4 or any(map(str.isdigit, word))}


def _claims(clause: str, known: str, numbers: set[str]) -> Iterator[str]:
    digits = _digits(clause)
    for match in _MEASURE.finditer(digits):
        value = next((match.group(name) for name in _VALUES if match.group(name)), None)
        if value is not None and _decimal(value) not in numbers:
            yield match.group().strip()
        if match.group("stage") and match.group().lower() not in known.lower():
            yield match.group()
    for pattern in (_PATIENT, _HISTORY):
        if (patient := pattern.search(clause)) and not pattern.search(known):
            yield patient.group()
    plain = _plain(clause)
    for thing in _things():
        if (found := thing.search(plain)) and not thing.search(known):
            yield found.group()


def _digits(text: str) -> str:
    """Numbers in words as digits: "sixty-two" -> "62"."""

    def number(match: re.Match[str]) -> str:
        return str(sum(_WORDS[word.lower()] for word in match.groups() if word))

    return _NUMBER_WORD.sub(number, text)


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
