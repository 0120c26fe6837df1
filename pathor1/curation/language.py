"""Whether a text stays in English: scripts by Unicode, other Latin languages by their function words."""

from __future__ import annotations

import re
import unicodedata

from pathor1.curation.vocabulary import vocabulary

# Formulas and markers have single Greek letters; a word of so many is another language. Of any other script one letter
# is enough: a single Chinese character is a term.
_GREEK_WORD = 3
# So many different function words, and this share of a sentence's words, make it another language's.
_DIFFERENT, _SHARE = 3, 0.2
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"[.!?\n]+")


def foreign(text: str) -> str | None:
    """What of a text is not English, in words; None = nothing. Letters with accents are English's guests."""
    scripts: dict[str, list[str]] = {}
    for word in _WORD.findall(text):
        if not word.isascii():
            for script in {_script(letter) for letter in word} - {"LATIN"}:
                scripts.setdefault(script, []).append(word)
    for script, words in scripts.items():
        enough = _GREEK_WORD if script == "GREEK" else 1
        word = next((word for word in words if sum(_script(letter) == script for letter in word) >= enough), None)
        if word is not None:
            return f"{script.title()} letters: {word[:40]}"
    for sentence in _SENTENCE.split(text):
        if language := _latin_language(sentence):
            return f"{language}: {' '.join(sentence.split())[:40]}"
    return None


def _latin_language(sentence: str) -> str | None:
    words = _WORD.findall(sentence.lower())
    for language, marks in vocabulary()["function_words"].items():
        known = set(marks.split())
        found = [word for word in words if word in known]
        if len(set(found)) >= _DIFFERENT and len(found) >= _SHARE * len(words):
            return str(language)
    return None


def _script(letter: str) -> str:
    """The script of a letter: the first word of its Unicode name. Modifiers and the micro sign count as Latin."""
    name = unicodedata.name(letter, "")
    if name.startswith(("MICRO", "MODIFIER", "SUPERSCRIPT", "SUBSCRIPT", "FEMININE", "MASCULINE")):
        return "LATIN"
    return name.split(" ")[0].split("-")[0] if name else "UNKNOWN"
