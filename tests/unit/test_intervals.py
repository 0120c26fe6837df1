"""How far a difference between two models, and a share of several answers, can be trusted."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pathor1.evaluation.intervals import difference, mcnemar, mean, pass_at_k


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        # As scipy says: binomtest(gained, gained + lost, 0.5).pvalue
        (5, 5, 1.0),
        (0, 0, 1.0),
        (8, 2, 0.109375),
        (2, 8, 0.109375),
        (15, 3, 0.00753784),
    ],
)
def test_mcnemars_exact_test(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-5)


def test_mcnemar_is_scipys() -> None:
    from scipy.stats import binomtest

    for gained, lost in ((0, 4), (7, 19), (40, 41), (333, 290), (1200, 1000)):
        assert mcnemar(gained, lost) == pytest.approx(binomtest(gained, gained + lost, 0.5).pvalue, rel=1e-9)


def test_a_difference_is_of_the_pairs_and_not_of_the_shares() -> None:
    # 60 % and 70 % of 100 questions, twice: once every change is a gain, once 40 answers change, 25 to the good.
    before = [1.0] * 60 + [0.0] * 40
    alone = [1.0] * 70 + [0.0] * 30
    both_ways = [1.0] * 45 + [0.0] * 15 + [1.0] * 25 + [0.0] * 15
    sure, unsure = difference(alone, before), difference(both_ways, before)
    assert (sure.value, sure.gained, sure.lost, sure.n) == (pytest.approx(0.1), 10, 0, 100)
    assert (unsure.value, unsure.gained, unsure.lost) == (pytest.approx(0.1), 25, 15)
    assert sure.significant
    assert not unsure.significant
    # The standard error of a mean of n differences d: sqrt((mean of d^2 - mean^2) / n).
    for found, changed in ((sure, 10), (unsure, 40)):
        reach = 1.96 * np.sqrt((changed / 100 - 0.1**2) / 100)
        assert (found.low, found.high) == pytest.approx((0.1 - reach, 0.1 + reach), abs=0.012)
    assert unsure.low < 0 < unsure.high
    assert sure.low > 0


def test_the_bootstrap_by_counts_is_that_of_drawing_questions() -> None:
    rng = np.random.default_rng(3)
    before, right = rng.integers(0, 2, 80).astype(float), rng.integers(0, 2, 80).astype(float)
    found = difference(right.tolist(), before.tolist())
    drawn = rng.integers(0, 80, (10_000, 80))
    low, high = np.percentile((right - before)[drawn].mean(axis=1), [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert difference(right.tolist(), before.tolist()) == found, "the same each time"


@pytest.mark.parametrize(("right", "before"), [([], []), ([1.0], [1.0, 0.0])])
def test_a_difference_needs_answers_to_the_same_questions(right: list[float], before: list[float]) -> None:
    with pytest.raises(ValueError, match="answers to the same questions"):
        difference(right, before)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for n, right in ((5, 2), (8, 1), (4, 0), (4, 4), (6, 3)):
        answers = [1] * right + [0] * (n - right)
        for k in range(1, n + 1):
            draws = list(combinations(answers, k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "right", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_of_what_cannot_be(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {n} answers"):
        pass_at_k(n, right, k)


def test_a_mean_has_the_normal_interval() -> None:
    found = mean([4.0, 6.0, 8.0])
    assert (found.value, found.n) == (6.0, 3)
    assert found.high - found.value == pytest.approx(1.959964 * 2.0 / 3**0.5)
    assert mean([3.0]).low == mean([3.0]).high == 3.0
    with pytest.raises(ValueError, match="nothing"):
        mean([])
