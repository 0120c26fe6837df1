"""Shares of right answers, with how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The normal distribution's quantile for 95 %, two-sided.
_Z = 1.959963984540054
# Draws of the bootstrap, which a percentile of 2.5 is taken of. [Efron and Tibshirani: a thousand or more]
DRAWS = 10_000


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean of `n` values, and its 95 % interval by the normal distribution."""

    value: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float]) -> Mean:
    """The mean of values that are no shares, such as a judge's scores. Raises ValueError where there is none."""
    if not values:
        raise ValueError("the mean of nothing")
    value, n = float(np.mean(values)), len(values)
    reach = _Z * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Mean(value=value, low=value - reach, high=value + reach, n=n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much more often one model is right than another on the same `n` questions: -1 to 1, with a 95 % interval.

    gained, lost: questions that it alone has right, and the other alone. p: of McNemar's exact test.
    """

    value: float
    low: float
    high: float
    p: float
    gained: int
    lost: int
    n: int

    @property
    def significant(self) -> bool:
        """Whether chance alone would bring so uneven a split less than once in twenty times."""
        return self.p < 0.05


def difference(right: Sequence[float], before: Sequence[float], *, seed: int = 0) -> Difference:
    """What changed from one model's answers to another's: 0 or 1 of each question, in the same order.

    The interval is the paired bootstrap's (percentiles): questions are drawn again, with both answers to them. As such
    a pair can only be gained, lost or neither, a draw of n questions is one of those three counts. Raises ValueError
    where there are no questions, or not as many of both.
    """
    if len(right) != len(before) or not right:
        raise ValueError(f"{len(right)} and {len(before)} answers to the same questions")
    n = len(right)
    gained = sum(new > old for new, old in zip(right, before, strict=True))
    lost = sum(new < old for new, old in zip(right, before, strict=True))
    drawn = np.random.default_rng(seed).multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], size=DRAWS)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / n, [2.5, 97.5])
    return Difference(
        value=(gained - lost) / n,
        low=float(low),
        high=float(high),
        p=mcnemar(gained, lost),
        gained=gained,
        lost=lost,
        n=n,
    )


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's test (1947), exact: how likely a split of the changed answers this uneven is, were both as likely."""
    changed = gained + lost
    tail = sum(math.comb(changed, count) for count in range(min(gained, lost) + 1))
    # In whole numbers: 2 ** changed is no float beyond a thousand.
    return min(1.0, 2 * tail / 2**changed)


def pass_at_k(n: int, right: int, k: int) -> float:
    """How likely one of k answers is right, of which `right` of n were: 1 - C(n - right, k) / C(n, k).

    Unbiased. Source: Chen et al. 2021 (arXiv 2107.03374), equation 1. Raises ValueError where k is not within 1 to n.
    """
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@{k} of {n} answers, {right} of them right")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)
