"""Pictures and texts that are nearly the same: by a perceptual hash of 64 bits, and by the words that two share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

HASH_BITS = 64
# Texts of fewer different words are like others by chance: "What is shown?".
FEWEST_WORDS = 8
_SIDE, _LOW = 32, 8
# Rows of a block of comparisons: 16 MB of distances.
_BLOCK = 2048

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
_WORD = re.compile(r"[^\W_]+")


def picture_hash(picture: Image.Image) -> int:
    """pHash: which of the 64 lowest frequencies of the grey picture, 32 x 32, are above their median.

    Other sizes, formats, qualities and slight changes of colour move a few bits. Turned and mirrored pictures have
    other hashes (`turned_hashes`).
    """
    return _hash(_grey(picture))


def turned_hashes(picture: Image.Image) -> list[int]:
    """The hashes of a picture in all eight turned and mirrored forms, the first as it is."""
    grey = _grey(picture)
    return [_hash(np.rot90(form, turns)) for form in (grey, grey[:, ::-1]) for turns in range(4)]


def _grey(picture: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)


def _hash(grey: npt.NDArray[np.float64]) -> int:
    from scipy.fft import dctn

    low = dctn(grey, norm="ortho")[:_LOW, :_LOW].ravel()
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def near_pairs(one: Hashes, other: Hashes, distance: int) -> Iterator[tuple[Places, Places]]:
    """Places in `one` and `other` whose hashes differ in at most `distance` bits; a pair may come more than once.

    By pigeonholes: of `distance` + 1 bands of the bits, two such hashes have at least one in common, so that only those
    with the same band are compared.
    """
    bounds = np.linspace(0, HASH_BITS, distance + 2).astype(int)
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        mask = np.uint64(((1 << (high - low)) - 1) << low)
        bands_one, bands_other = one & mask, other & mask
        order_one, order_other = np.argsort(bands_one, kind="stable"), np.argsort(bands_other, kind="stable")
        sorted_one, sorted_other = bands_one[order_one], bands_other[order_other]
        for band in np.intersect1d(sorted_one, sorted_other):
            mine = order_one[np.searchsorted(sorted_one, band) : np.searchsorted(sorted_one, band, side="right")]
            theirs = order_other[
                np.searchsorted(sorted_other, band) : np.searchsorted(sorted_other, band, side="right")
            ]
            yield from _compared(one, other, mine, theirs, distance)


def _compared(
    one: Hashes, other: Hashes, mine: Places, theirs: Places, distance: int
) -> Iterator[tuple[Places, Places]]:
    for start in range(0, len(mine), _BLOCK):
        for begin in range(0, len(theirs), _BLOCK):
            rows, columns = mine[start : start + _BLOCK], theirs[begin : begin + _BLOCK]
            differ = np.bitwise_count(one[rows][:, None] ^ other[columns][None, :])
            found = np.nonzero(differ <= distance)
            if len(found[0]):
                yield rows[found[0]], columns[found[1]]


def near_any(one: Hashes, other: Hashes, distance: int) -> Places:
    """For each of `one` the first place in `other` that is near, -1 = none is."""
    nearest = np.full(len(one), len(other), dtype=np.int64)
    if len(one) and len(other):
        for mine, theirs in near_pairs(one, other, distance):
            np.minimum.at(nearest, mine, theirs)
    return np.where(nearest == len(other), -1, nearest)


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
