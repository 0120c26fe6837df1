"""Pictures that are nearly the same, by a perceptual hash of 64 bits (pHash).

Of two pictures the bits are counted in which their hashes differ. Another size, format or quality, or a little of
another colour, moves few of them; turned and mirrored pictures have other hashes, and parts that were cut out have too.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pathor1 import places
from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.data.row_groups import RowGroup
from pathor1.errors import DataError

HASH_BITS = 64
# A picture of one colour, or nearly, has a hash that says nothing.
LEAST_CONTRAST = 4.0
_SIDE, _LOW = 32, 8
# Rows of a block of comparisons: 16 MB of distances.
_BLOCK = 2048

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


def picture_hash(picture: Image.Image) -> int:
    """pHash: which of the 64 lowest frequencies of the grey picture, 32 x 32, are above their median."""
    return _hash(_grey(picture))


def turned_hashes(picture: Image.Image) -> list[int]:
    """The hashes of a picture in all eight turned and mirrored forms, the first as it is."""
    grey = _grey(picture)
    return [_hash(np.rot90(form, turns)) for form in (grey, grey[:, ::-1]) for turns in range(4)]


def is_plain(picture: Image.Image) -> bool:
    """Whether a picture has hardly a contrast: it would be near every other such one."""
    return float(np.asarray(picture.convert("L"), dtype=np.float32).std()) < LEAST_CONTRAST


def _grey(picture: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)


def _hash(grey: npt.NDArray[np.float64]) -> int:
    low = (_cosines() @ grey @ _cosines().T).ravel()
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """The rows of the orthonormal DCT-II matrix for the lowest frequencies, [_LOW, _SIDE]."""
    places_ = np.arange(_SIDE) + 0.5
    rows = np.sqrt(2 / _SIDE) * np.cos(np.pi / _SIDE * np.arange(_LOW)[:, None] * places_)
    rows[0] /= np.sqrt(2)
    return rows


def near_pairs(one: Hashes, other: Hashes, distance: int) -> Iterator[tuple[Places, Places, Bits]]:
    """Places in `one` and `other` whose hashes differ in at most `distance` bits, with those; pairs may come again.

    By pigeonholes: of `distance` + 1 bands of the bits, two such hashes have at least one in common, so that only those
    with the same band are compared.
    """
    bounds = np.linspace(0, HASH_BITS, distance + 2).astype(int)
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        shift, mask = np.uint64(low), np.uint64((1 << (high - low)) - 1)
        bands_one, bands_other = one >> shift & mask, other >> shift & mask
        order_one, order_other = np.argsort(bands_one, kind="stable"), np.argsort(bands_other, kind="stable")
        sorted_one, sorted_other = bands_one[order_one], bands_other[order_other]
        common = np.intersect1d(sorted_one, sorted_other)
        edges = (
            np.searchsorted(sorted_one, common),
            np.searchsorted(sorted_one, common, side="right"),
            np.searchsorted(sorted_other, common),
            np.searchsorted(sorted_other, common, side="right"),
        )
        for begin, end, first, last in zip(*(each.tolist() for each in edges), strict=True):
            yield from _compared(one, other, order_one[begin:end], order_other[first:last], distance)


def _compared(
    one: Hashes, other: Hashes, mine: Places, theirs: Places, distance: int
) -> Iterator[tuple[Places, Places, Bits]]:
    for start in range(0, len(mine), _BLOCK):
        for begin in range(0, len(theirs), _BLOCK):
            rows, columns = mine[start : start + _BLOCK], theirs[begin : begin + _BLOCK]
            differ = np.bitwise_count(one[rows][:, None] ^ other[columns][None, :])
            found = np.nonzero(differ <= distance)
            if len(found[0]):
                yield rows[found[0]], columns[found[1]], differ[found]


def nearest(one: Hashes, other: Hashes, distance: int) -> tuple[Places, Places]:
    """For each of `one` the nearest in `other`, the first of several, and the bits in which it differs.

    -1 for both where none is within the distance.
    """
    none = np.iinfo(np.int64).max
    best = np.full(len(one), none, dtype=np.int64)
    if len(one) and len(other):
        for mine, theirs, bits in near_pairs(one, other, distance):
            np.minimum.at(best, mine, bits.astype(np.int64) << 40 | theirs)
    there = best != none
    return np.where(there, best & (1 << 40) - 1, -1), np.where(there, best >> 40, -1)


HASHES = pa.schema(
    [("file", pa.string()), ("id", pa.string()), ("pixels", pa.binary()), ("hashes", pa.list_(pa.uint64()))]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashGroup:
    """A row group of samples -> rows of `HASHES`, one a picture: the function that one of Ray Data's workers runs.

    pixels: a digest of them, the same in every format; null where the picture cannot be read. hashes: of the picture as
    it is, or of all its forms; none where it is plain or cannot be read.
    """

    group: RowGroup
    all_forms: bool

    def __call__(self) -> Iterator[pa.Table]:
        for batch in places.batches(self.group.file, group=self.group.index, size=32, columns=("id", "images")):
            rows = [row for each in batch.to_pylist() for row in self._rows(each)]
            yield pa.Table.from_pylist(rows, schema=HASHES)

    def _rows(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for data in row["images"]:
            pixels, hashes = None, list[int]()
            try:
                picture = decode(data, min_pixels=1, max_pixels=LARGEST_PIXELS)
            except DataError:
                pass
            else:
                pixels = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()[:16]
                if not is_plain(picture):
                    hashes = turned_hashes(picture) if self.all_forms else [picture_hash(picture)]
            yield {"file": self.group.file, "id": row["id"], "pixels": pixels, "hashes": hashes}


def array(hashes: Sequence[int]) -> Hashes:
    """Hashes as `near_pairs` takes them."""
    return np.array(hashes, dtype=np.uint64)
