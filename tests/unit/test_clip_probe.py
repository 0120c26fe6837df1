"""The linear probe: shots a class, seeds, whole groups on one side."""

from __future__ import annotations

import numpy as np
import pytest

from pathor1.clip.probe import probe, split
from pathor1.errors import DataError


def blobs(rng, count, distance, d=8):
    """Features of two classes whose means lie so far apart, and their classes."""
    values = rng.standard_normal((2 * count, d)).astype(np.float32)
    values[count:, 0] += distance
    return values, np.asarray(["a"] * count + ["b"] * count)


def test_more_shots_know_more_and_a_seed_makes_the_same_draw():
    rng = np.random.default_rng(0)
    train, classes = blobs(rng, 200, 2.0)
    test, truth = blobs(rng, 300, 2.0)
    found = probe(train, classes, test, truth, shots=(2, 64), seeds=4)
    assert [(one.shots, one.seed) for one in found] == [(shots, seed) for shots in (2, 64) for seed in range(4)]
    few, many = found[:4], found[4:]
    assert np.mean([one.accuracy for one in many]) > np.mean([one.accuracy for one in few]) + 0.05
    assert len({one.accuracy for one in few}) > 1, "each seed draws others"
    assert all(0.75 < one.accuracy < 0.9 and one.converged for one in many)  # Bayes: 0.841
    assert probe(train, classes, test, truth, shots=(2, 64), seeds=4) == found


def test_features_of_chance_are_worth_chance():
    rng = np.random.default_rng(1)
    train, classes = blobs(rng, 100, 0.0)
    test, truth = blobs(rng, 500, 0.0)
    assert np.mean([one.accuracy for one in probe(train, classes, test, truth, shots=(16,))]) == pytest.approx(
        0.5, abs=0.04
    )


def test_accuracy_and_balanced_accuracy_differ_where_classes_do():
    rng = np.random.default_rng(2)
    train, classes = blobs(rng, 50, 1.0)
    test, truth = blobs(rng, 400, 1.0)
    found = probe(train, classes, test[380:], truth[380:], shots=(32,), seeds=1)[0]
    assert found.accuracy != found.balanced


def test_a_group_is_on_one_side():
    rng = np.random.default_rng(3)
    groups = [f"patient {number}" for number in range(60) for _ in range(4)]
    classes = [("NILM", "LSIL", "HSIL")[number % 3] for number in range(60) for _ in range(4)]
    test = split(groups, classes, test_share=0.5, seed=0)
    sides = {group: {bool(side) for side, of in zip(test, groups, strict=True) if of == group} for group in groups}
    assert all(len(found) == 1 for found in sides.values())
    for name in set(classes):
        assert np.mean(test[np.asarray(classes) == name]) == pytest.approx(0.5, abs=0.1)
    assert (split(groups, classes, test_share=0.5, seed=0) == test).all()
    assert (split(groups, classes, test_share=0.5, seed=1) != test).any()
    del rng


def test_what_cannot_be_probed():
    rng = np.random.default_rng(4)
    train, classes = blobs(rng, 10, 1.0)
    with pytest.raises(DataError, match="10 training pictures of a, fewer than 16 shots"):
        probe(train, classes, train, classes, shots=(2, 16))
    with pytest.raises(DataError, match="two classes or more"):
        probe(train[:10], classes[:10], train, classes, shots=(2,))
    with pytest.raises(DataError, match="test pictures of c"):
        probe(train, classes, train[:1], np.asarray(["c"]), shots=(2,))
    with pytest.raises(DataError, match="no group leaves pictures of"):
        split(["one"] * 4, ["a", "a", "b", "b"], test_share=0.5, seed=0)
