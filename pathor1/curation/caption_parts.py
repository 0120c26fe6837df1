"""What a caption says of each panel: "A, ...", "(b) ...", "Left: ...", and text with its label behind it, "... (A)"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pathor1.curation.lines import CAPTION

POSITIONS = ("upper left", "upper right", "lower left", "lower right", "left", "right", "top", "bottom", "middle", "center", "upper", "lower")  # fmt: skip # noqa: E501
_DASH = "[-‐‑–—]"  # noqa: RUF001 (the hyphens and dashes of print)
_LETTER = r"[A-Za-z]"
# "A", "A and B", "A, B", "A to C", "A-C"
_LETTERS = rf"{_LETTER}(?:\s*(?:,|and|&|to|through|{_DASH}|,\s*and)\s*{_LETTER}(?![a-z]))*"
_BEGINS = r"(?:(?<=^)|(?<=[.;:!?)]\s)|(?<=[.;:!?)]))"
# A label that begins its part.
_STYLES = {
    "letter": re.compile(rf"{_BEGINS}(?P<label>{_LETTERS})(?=[,.:)]\s)[,.:)]\s+"),
    "bracket": re.compile(rf"{_BEGINS}\((?P<label>{_LETTERS})\)[,.:]?\s*"),
    "position": re.compile(
        rf"{_BEGINS}\(?(?P<label>{'|'.join(map(str.capitalize, POSITIONS))}|{'|'.join(POSITIONS)})"
        r"(?:\s+(?:panel|figure|image))?(?:\)[,.:]?|[,:])\s+",
    ),
}
# A label in brackets behind its part: "a crypt abscess (A) and a granuloma (B)".
_BEHIND = re.compile(rf"\s*\((?P<label>{_LETTERS}|{'|'.join(POSITIONS)})\)")
# What is said at the end of several panels: "(A to C, hematoxylin and eosin.)"
_OF_SEVERAL = re.compile(rf"\s*\(\s*{_LETTER}\s*(?:,|and|&|to|through|{_DASH})\s*{_LETTER}\b[^()]*\)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A caption in parts. label: as printed before it ("Figure 3-2"); intro: said of all; parts: label -> its text.

    tail: said of several at the end. Labels are capital letters, or positions such as "upper left".
    """

    label: str
    intro: str
    parts: dict[str, str]
    tail: str

    def of(self, panel: str) -> str:
        """The caption of one panel; the whole text for a label that it does not have."""
        chosen = [self.parts[panel]] if panel in self.parts else list(dict.fromkeys(self.parts.values()))
        return " ".join(text for text in (self.intro, *chosen, self.tail) if text)


def parse(caption: str) -> Parts:
    """A caption's parts; none where it names no panels, or fewer than two."""
    text = " ".join(caption.split())
    label = ""
    if found := CAPTION.match(text):
        end = found.end("panel") if found["panel"] else found.end("label")
        label, text = text[:end], text[end:].lstrip(" .:—–-|■•►▶")  # noqa: RUF001
    tail = ""
    if several := _OF_SEVERAL.search(text):
        text, tail = text[: several.start()], several.group().strip()
    best: tuple[str, dict[str, str]] = (text, {})
    for pattern in _STYLES.values():
        found_parts = _leading(text, pattern)
        if len(found_parts[1]) > len(best[1]):
            best = found_parts
    behind = _trailing(text)
    if len(behind[1]) > len(best[1]):
        best = behind
    intro, parts = best
    if len(parts) < 2:
        return Parts(label=label, intro=f"{text} {tail}".strip(), parts={}, tail="")
    return Parts(label=label, intro=intro, parts=parts, tail=tail)


def _leading(text: str, pattern: re.Pattern[str]) -> tuple[str, dict[str, str]]:
    """Intro and parts where labels stand before what they label; labels that are out of order are none."""
    marks: list[tuple[re.Match[str], list[str]]] = []
    seen: list[str] = []
    for mark in pattern.finditer(text):
        labels = labels_in(mark["label"])
        if _goes_on(seen, labels):
            seen += labels
            marks.append((mark, labels))
    parts: dict[str, str] = {}
    for place, (mark, labels) in enumerate(marks):
        end = marks[place + 1][0].start() if place + 1 < len(marks) else len(text)
        for label in labels:
            parts[label] = text[mark.end() : end].strip()
    return (text[: marks[0][0].start()].strip() if marks else text), parts


def _trailing(text: str) -> tuple[str, dict[str, str]]:
    """The same where labels stand in brackets behind what they label."""
    parts: dict[str, str] = {}
    begin, intro = 0, ""
    for mark in _BEHIND.finditer(text):
        labels = labels_in(mark["label"])
        said = text[begin : mark.start()].strip()
        if not said or not _goes_on(list(parts), labels):
            continue
        if not parts and ". " in said:  # whole sentences before the first one are of all
            intro, _, said = said.rpartition(". ")
            intro += "."
        for label in labels:
            parts[label] = re.sub(r"^(?:[,;.]|and\b)\s*", "", said).strip()
        begin = mark.end()
    rest = re.sub(r"^[,;.]\s*", "", text[begin:]).strip()
    return " ".join(filter(None, (intro, rest))), parts


def _goes_on(seen: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether labels follow those before: A first, and then letter by letter; positions each once."""
    if any(label in seen for label in labels):
        return False
    if labels[0] in POSITIONS:
        return all(label in POSITIONS for label in [*seen, *labels])
    letters = [*seen, *labels]
    return all(len(label) == 1 and ord(label) == ord("A") + place for place, label in enumerate(letters))


def labels_in(text: str) -> list[str]:
    """ "A to C" -> A, B, C; "b and d" -> B, D; "Upper left" -> upper left."""
    if text.lower() in POSITIONS:
        return [text.lower()]
    letters = [each.upper() for each in re.findall(rf"(?<![A-Za-z]){_LETTER}(?![A-Za-z])", text)]
    if len(letters) == 2 and re.search(rf"\b(?:to|through)\b|{_DASH}", text) and letters[0] < letters[1]:
        return [chr(code) for code in range(ord(letters[0]), ord(letters[1]) + 1)]
    return list(dict.fromkeys(letters))
