"""The soft overlong punishment of DAPO."""

from __future__ import annotations


def overlong_penalty(length: int, max_length: int, cache_length: int) -> float:
    """0 up to `max_length - cache_length` tokens, then falling linearly to -1 at `max_length`, -1 beyond.

    All three are numbers of tokens. Source: DAPO (arXiv 2503.14476), equation 13, which Patho-R1 takes over (section
    3.4, "Length-Aware Penalty"). Example: max_length=20480, cache_length=4096: 16384 -> 0.0, 18432 -> -0.5,
    20480 -> -1.0. Raises ValueError for a negative length and for a cache that is not above 0 and below max_length.
    """
    if length < 0:
        raise ValueError(f"length is {length}; a number of tokens is 0 or more")
    if not 0 < cache_length < max_length:
        raise ValueError(f"cache_length is {cache_length}; it has to be above 0 and below max_length, {max_length}")
    free = max_length - cache_length
    return 0.0 if length <= free else max((free - length) / cache_length, -1.0)
