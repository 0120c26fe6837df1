"""Texts that are nearly the same, by the words that two share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Texts of fewer different words are like others by chance: "What is shown?".
FEWEST_WORDS = 8
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> frozenset[str]:
    """The different words of a text, without case."""
    return frozenset(_WORD.findall(text.casefold()))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard index: the words that both have, of all."""
    return len(one & other) / len(one | other) if one or other else 1.0


class Texts:
    """Texts in which those that are near to another are found, by MinHash (datasketch), and then compared in full."""

    def __init__(self, texts: Iterable[tuple[str, str]], similarity_: float) -> None:
        from datasketch import MinHashLSH

        self.threshold = similarity_
        self._words: dict[str, frozenset[str]] = {}
        # A lower threshold than asked for: a near text that MinHash misses is not compared at all.
        self._index = MinHashLSH(threshold=max(0.05, similarity_ - 0.15), num_perm=128)
        for name, text in texts:
            found = words(text)
            if len(found) >= FEWEST_WORDS and name not in self._words:
                self._words[name] = found
                self._index.insert(name, _minhash(found))

    def near(self, text: str) -> str | None:
        """The name of a text that is near, None = there is none. The smallest name of several."""
        found = words(text)
        if len(found) < FEWEST_WORDS or not self._words:
            return None
        candidates: Sequence[str] = sorted(self._index.query(_minhash(found)))
        return next((name for name in candidates if similarity(found, self._words[name]) >= self.threshold), None)


def _minhash(found: frozenset[str]) -> object:
    from datasketch import MinHash

    made = MinHash(num_perm=128, seed=1)
    made.update_batch([word.encode() for word in sorted(found)])
    return made
