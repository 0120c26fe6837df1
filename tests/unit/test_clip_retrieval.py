"""Recall@k: as a naive implementation has it, whatever the sizes, with texts and pictures that come twice."""

from __future__ import annotations

import numpy as np
import pytest

from pathor1.clip import retrieval as module
from pathor1.clip.retrieval import KS, groups, retrieval
from pathor1.errors import DataError


def features(rng, n, d=16):
    values = rng.standard_normal((n, d)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def naive(queries, candidates, texts, images):
    """Percent of queries with something right among the first k, by a whole matrix and a whole sort."""
    order = np.argsort(-(queries @ candidates.T), axis=1, kind="stable")
    found = {}
    for k in KS:
        hits = 0
        for query, first in enumerate(order[:, :k]):
            hits += any(texts[place] == texts[query] or images[place] == images[query] for place in first)
        found[k] = hits / len(queries)
    return found


@pytest.mark.parametrize(("n", "distinct"), [(300, 300), (300, 120), (7, 7), (1, 1)])
def test_the_numbers_are_those_of_a_naive_implementation(n, distinct, monkeypatch):
    rng = np.random.default_rng(n + distinct)
    monkeypatch.setattr(module, "QUERIES", 64)  # many chunks, of which the last is not whole
    monkeypatch.setattr(module, "CANDIDATES", 48)
    texts = [f"caption {number}" for number in rng.integers(distinct, size=n)]
    images = [f"picture {number}" for number in rng.integers(2 * distinct, size=n)]
    one, other = features(rng, n), features(rng, n)
    other = (other + 0.7 * one) / np.linalg.norm(other + 0.7 * one, axis=1, keepdims=True)
    found = retrieval(one, other, same_text=groups(texts), same_image=groups(images))
    for recall, queries, candidates in ((found.image_to_text, one, other), (found.text_to_image, other, one)):
        expected = naive(queries, candidates, texts, images)
        assert {k: share.value for k, share in recall.at.items()} == pytest.approx(expected)
        assert recall.mean == pytest.approx(np.mean(list(expected.values())))
        assert recall.n == n
    assert found.first.shape == (n, min(n, 20))


def test_the_directions_are_not_each_others():
    # Both texts are most like the first picture; each picture is most like its own text.
    images = np.asarray([[1.0, 0.0], [0.0, 1.0]], np.float32)
    texts = np.asarray([[1.0, 0.0], [0.8, 0.6]], np.float32)
    found = retrieval(images, texts, same_text=np.arange(2), same_image=np.arange(2))
    assert found.image_to_text.at[1].value == 1.0
    assert found.text_to_image.at[1].value == 0.5


def test_the_same_caption_of_another_picture_is_right():
    images = np.eye(3, dtype=np.float32)
    texts = np.asarray([[0, 1, 0], [1, 0, 0], [0, 0, 1]], np.float32)  # the first two are exchanged
    alone = retrieval(images, texts, same_text=np.arange(3), same_image=np.arange(3))
    assert alone.image_to_text.at[1].value == pytest.approx(1 / 3)
    same = retrieval(images, texts, same_text=groups(["a", "a", "b"]), same_image=np.arange(3))
    assert same.image_to_text.at[1].value == same.text_to_image.at[1].value == 1.0
    picture = retrieval(images, texts, same_text=np.arange(3), same_image=groups(["x", "x", "y"]))
    assert picture.text_to_image.at[1].value == 1.0


def test_fewer_candidates_than_k():
    rng = np.random.default_rng(0)
    found = retrieval(features(rng, 6), features(rng, 6), same_text=np.arange(6), same_image=np.arange(6))
    assert found.image_to_text.at[10].value == found.image_to_text.at[20].value == 1.0
    assert found.image_to_text.at[1].value < 1.0


def test_a_model_that_says_the_same_of_everything_finds_nothing_by_it():
    same = np.tile(features(np.random.default_rng(0), 1), (500, 1))
    found = retrieval(same, same, same_text=np.arange(500), same_image=np.arange(500))
    assert found.image_to_text.at[20].value <= 0.05


def test_what_cannot_be_ranked():
    values = np.full((3, 2), np.nan, np.float32)
    with pytest.raises(DataError, match="features of the pictures are not finite"):
        retrieval(values, values, same_text=np.arange(3), same_image=np.arange(3))
    with pytest.raises(DataError, match="no picture with a caption"):
        retrieval(values[:0], values[:0], same_text=np.arange(0), same_image=np.arange(0))
