"""Few-shot classification by a linear probe: logistic regression on a frozen model's features (paper, section 4.3)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pathor1.errors import DataError

SHOTS = (2, 8, 16, 32, 64, 128)
SEEDS = 10
# As the authors' code has them.
INVERSE_REGULARISATION, MOST_ITERATIONS = 1.0, 1000

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """One fit. shots: training pictures of each class; accuracy, balanced: on the test pictures, 0 to 1.

    converged: whether the solver came to its end within `MOST_ITERATIONS`.
    """

    shots: int
    seed: int
    accuracy: float
    balanced: float
    converged: bool


def split(groups: Sequence[str], classes: Sequence[str], *, test_share: float, seed: int) -> npt.NDArray[np.bool_]:
    """[n] which pictures are test pictures: whole groups, about `test_share` of each class's pictures.

    groups: what must not be on both sides, such as the patient. Raises DataError where that leaves a class out of one.
    """
    rng = np.random.default_rng(seed)
    labels, names = np.asarray(classes), np.asarray(groups)
    test = np.zeros(len(names), dtype=bool)
    wanted = {name: test_share * int((labels == name).sum()) for name in np.unique(labels)}
    for group in rng.permutation(np.unique(names)):
        members = names == group
        kinds, counts = np.unique(labels[members], return_counts=True)
        missing = sum(min(wanted[kind], count) for kind, count in zip(kinds, counts, strict=True))
        if 2 * missing >= members.sum():  # most of it is still needed
            test |= members
            for kind, count in zip(kinds, counts, strict=True):
                wanted[kind] -= count
    for side, chosen in (("test", test), ("training", ~test)):
        if absent := set(labels) - set(labels[chosen]):
            raise DataError(
                f"no group leaves pictures of {', '.join(sorted(absent))} among the {side} pictures; change "
                "test_share, or give train and test files"
            )
    return test


def probe(
    train: Floats,
    train_classes: Labels,
    test: Floats,
    test_classes: Labels,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
) -> list[Probed]:
    """A fit for each number of shots and each seed, which draws the pictures. A fit that fails is an error.

    train: [n, d], test: [m, d], as the model gives them. Raises DataError where a class has too few pictures.
    """
    names, counts = np.unique(train_classes, return_counts=True)
    if len(names) < 2:
        raise DataError("a probe needs pictures of two classes or more")
    if strange := set(test_classes) - set(names):
        raise DataError(f"test pictures of {', '.join(sorted(strange))}, of which there is no training picture")
    fewest = counts.argmin()
    if counts[fewest] < max(shots):
        raise DataError(
            f"{counts[fewest]} training pictures of {names[fewest]}, fewer than {max(shots)} shots; take fewer shots"
        )
    return [
        _fit(train, train_classes, test, test_classes, names, count, seed) for count in shots for seed in range(seeds)
    ]


def _fit(
    train: Floats, train_classes: Labels, test: Floats, test_classes: Labels, names: Labels, shots: int, seed: int
) -> Probed:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng((seed, shots))
    chosen = np.concatenate([rng.choice(np.flatnonzero(train_classes == name), shots, replace=False) for name in names])
    model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train[chosen], train_classes[chosen])
    right = model.predict(test) == test_classes
    return Probed(
        shots=shots,
        seed=seed,
        accuracy=float(right.mean()),
        balanced=float(np.mean([right[test_classes == name].mean() for name in np.unique(test_classes)])),
        converged=not any(issubclass(one.category, ConvergenceWarning) for one in told),
    )
