"""Shares of right answers, with how far they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The normal distribution's quantile for 95 %, two-sided.
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of `n` questions, 0 to 1, and its 95 % interval.

    Example: Share(value=0.5, low=0.404, high=0.596, n=100).
    """

    value: float
    low: float
    high: float
    n: int


def wilson(right: float, n: int) -> Share:
    """Wilson's score interval (1927): unlike value ± error it stays within 0 to 1, and holds for few questions too.

    Raises ValueError where `right` is not within 0 to `n`, or `n` is 0.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} right of {n}")
    value, square = right / n, _Z**2 / n
    centre = (value + square / 2) / (1 + square)
    reach = math.sqrt(value * (1 - value) * square + square**2 / 4) / (1 + square)
    return Share(value=value, low=max(0.0, centre - reach), high=min(1.0, centre + reach), n=n)
