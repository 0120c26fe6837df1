"""Where a text speaks of figures: "Fig. 3-2B", "Figures 3 to 5", "Figs. 2 and 4", and the sentence around it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_DASHES = "-‐‑–—"  # noqa: RUF001 (the hyphens and dashes of print)
_NUMBER = rf"[A-Z]?\d{{1,3}}(?:\s?[{_DASHES}.·]\s?\d{{1,3}}){{0,3}}"
_AND = rf"\s*(?:,\s*and|,|and|&|to|through|[{_DASHES}])\s*"
_CAPITALS = rf"[A-H](?![A-Za-z])(?:{_AND}[A-H](?![A-Za-z]))*"
_SMALL = rf"[a-h](?![A-Za-z])(?:{_AND}[a-h](?![A-Za-z]))*"
# "3-2A", "3-2 A", "3-2a" (but not "2 a", which goes on with the sentence), "3-2 (A)", "3-2, B and C", "3-2, B)".
_PANELS = (
    rf"\s?{_CAPITALS}|{_SMALL}|\s?\((?:{_CAPITALS}|{_SMALL})\)"
    rf"|,\s*(?:[A-H]{_AND}{_CAPITALS}|[A-H](?=\s*[,.;:)\]]))"
)
_ITEM_RE = re.compile(rf"(?P<number>{_NUMBER})(?P<panels>{_PANELS})?")
_WORD = re.compile(r"\b(?:[Ff]ig(?:ure)?s?|FIG(?:URE)?S?)\b\.?\s*(?=[A-Z]?\d)")
_SEPARATOR = re.compile(rf"\s*(?:,\s*and|;\s*and|,|;|and|&|(?P<range>to|through|[{_DASHES}]))\s*(?=[A-Z]?\d)")
# Longest range that is taken for one: "Figures 1 to 40" is a list of plates.
LONGEST_RANGE = 30

# Characters before a full stop that are looked at: an abbreviation, and the word before it.
_LONGEST_WORD = 40
_BLANKS = re.compile(r"\s*")
_ABBREVIATIONS = ("fig", "figs", "e.g", "i.e", "vs", "cf", "dr", "al", "approx", "no", "nos", "ca", "st", "ref", "refs", "see fig")  # fmt: skip # noqa: E501
_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s+[\"'“‘(\[]?[A-Z0-9])|[.!?][\"'”’)\]]*\s*\Z")  # noqa: RUF001


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure that is named. number: its parts, such as ("3", "2"); panels: capital letters."""

    number: tuple[str, ...]
    panels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A place in a text that names figures: from `start` to `end`, behind its last character.

    or_range: what it names where the first reading names a figure that there is not: "Figures 3-5" may be 3 to 5.
    """

    start: int
    end: int
    targets: tuple[Target, ...]
    or_range: tuple[Target, ...] = ()


def parts_of(number: str) -> tuple[str, ...]:
    """ "3-2" and "3.2" -> ("3", "2")."""
    return tuple(part for part in re.split(rf"[{_DASHES}.·\s]+", number) if part)


def find(text: str) -> Iterator[Mention]:
    """The mentions of a text, in order."""
    for word in _WORD.finditer(text):
        targets: list[Target] = []
        or_range: list[Target] = []
        place, end, is_range = word.end(), word.end(), False
        while item := _ITEM_RE.match(text, place):
            number, panels = parts_of(item["number"]), _panels(item["panels"] or "")
            if is_range:
                targets += _between(targets[-1].number, number)
            if len(number) == 4:  # "3-1-3-3", with a dash for "to"
                targets += [Target(number=number[:2], panels=()), *_between(number[:2], number[2:])]
                number = number[2:]
            elif len(number) == 2:
                or_range += _through(number[0], number[1])
            targets.append(Target(number=number, panels=panels))
            end = item.end()
            separator = _SEPARATOR.match(text, end)
            if separator is None:
                break
            place, is_range = separator.end(), separator["range"] is not None
        if targets:
            yield Mention(
                start=word.start(),
                end=end,
                targets=tuple(dict.fromkeys(targets)),
                or_range=tuple(or_range) if len(targets) == 1 else (),
            )


def _panels(text: str) -> tuple[str, ...]:
    letters = re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", text)
    letters = [letter.upper() for letter in letters]
    if len(letters) == 2 and re.search(rf"\b(?:to|through)\b|[{_DASHES}]", text) and letters[0] < letters[1]:
        return tuple(chr(code) for code in range(ord(letters[0]), ord(letters[1]) + 1))
    return tuple(dict.fromkeys(letters))


def _between(first: Sequence[str], last: Sequence[str]) -> list[Target]:
    """The numbers between two, without them: 1-2 and 1-5 -> 1-3, 1-4."""
    if tuple(first[:-1]) != tuple(last[:-1]) or not (first[-1].isdigit() and last[-1].isdigit()):
        return []
    low, high = int(first[-1]), int(last[-1])
    if not 0 < high - low <= LONGEST_RANGE:
        return []
    return [Target(number=(*first[:-1], str(each)), panels=()) for each in range(low + 1, high)]


def _through(first: str, last: str) -> list[Target]:
    """The numbers from one to another, both among them; none where that is no range."""
    if not (first.isdigit() and last.isdigit()) or not 0 < int(last) - int(first) <= LONGEST_RANGE:
        return []
    return [Target(number=(str(each),), panels=()) for each in range(int(first), int(last) + 1)]


def sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence begins, and behind its last character. An abbreviation's full stop ends none."""
    found: list[tuple[int, int]] = []
    start = 0
    for end in _END.finditer(text):
        before = text[max(start, end.start() - _LONGEST_WORD) : end.start()].rstrip()
        last = before.split()[-1].lower().lstrip("(") if before else ""
        if end.group().startswith(".") and (last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha())):
            continue
        found.append((start, end.end()))
        start = _BLANKS.match(text, end.end()).end()  # type: ignore[union-attr] # matches nothing too
    if text[start:].strip():
        found.append((start, len(text.rstrip())))
    return found
