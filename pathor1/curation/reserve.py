"""Which pictures are kept for the questions of RL, and which tasks an item gets: functions of digests and the seed.

The side is decided by the picture's digest before anything is written, so that a picture that two books have is on one
side, whichever stage runs first and however many items come later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def share(seed: int, *keys: str) -> float:
    """A number in [0, 1) that depends on the keys and the seed alone, spread evenly over keys."""
    text = "\0".join((str(seed), *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def is_reserved(image_sha256: str, *, reserved: float, seed: int) -> bool:
    """Whether questions for RL are made of this picture, and no sample of the supervised stage."""
    return share(seed, "reserved", image_sha256) < reserved


def in_turn(choices: Sequence[T], count: int, *, turn: int) -> list[T]:
    """`count` of the choices, by turns, so that each comes as often as the others.

    Example: in_turn("abcd", 2, turn=1) -> ["c", "d"].
    """
    first = turn * count
    return [choices[(first + place) % len(choices)] for place in range(count)]
