"""Zero-shot classification: the prompts, the classifier made of them, and what came of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pathor1.clip import prompts
from pathor1.clip.prompts import Prompts
from pathor1.clip.zero_shot import classifier, classify, score
from pathor1.data.formats import bmt, lc25000, sicapv2, wsss4luad
from pathor1.errors import DataError


def encode(texts):
    """A vector for each text that hangs on the text alone."""
    rows = [np.random.default_rng(list(text.encode())).standard_normal(8) for text in texts]
    return np.asarray([row / np.linalg.norm(row) for row in rows], np.float32)


def test_a_class_is_the_mean_of_its_sentences_made_of_length_one_again():
    found = classifier(Prompts(classes={"x": ("a", "b"), "y": ("c",)}, templates=("CLASSNAME.", "a CLASSNAME")), encode)
    mean = encode(["a.", "a a", "b.", "a b"]).mean(axis=0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    # Without the last step a class of many synonyms would be shorter, and lose.
    assert np.linalg.norm(mean) < 0.9


def test_the_counts_and_their_intervals():
    truth = np.asarray([0] * 90 + [1] * 10)
    said = np.asarray([0] * 90 + [0] * 8 + [1] * 2)
    found = score(said, truth, ["common", "rare"])
    assert found.confusion == ((90, 0), (8, 2))
    assert found.accuracy.value == pytest.approx(0.92)
    assert found.balanced.value == pytest.approx(0.6)
    assert found.by_class["rare"].value == pytest.approx(0.2)
    # Wilson's interval of 92 of 100; that of the mean of 90 of 90 and 2 of 10 is mostly the second's, halved.
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((0.8501, 0.9589), abs=1e-4)
    rare = found.by_class["rare"]
    assert found.balanced.high - 0.6 == pytest.approx((rare.high - 0.2) / 2, abs=1e-6)
    assert 0.6 - found.balanced.low > (0.2 - rare.low) / 2


def test_classify_takes_the_nearest():
    weights = np.eye(3, dtype=np.float32)
    images = np.asarray([[0.1, 0.9, 0.0], [0.0, 0.2, 0.8]], np.float32)
    assert classify(images, weights).tolist() == [1, 2]


def test_a_class_without_pictures_is_an_error():
    with pytest.raises(DataError, match="no picture of the class b"):
        score(np.asarray([0, 0]), np.asarray([0, 0]), ["a", "b"])


def test_the_prompts_of_the_five_sets_name_the_classes_of_their_importers():
    classes = {name: set(prompts.load(name).classes) for name in prompts.names()}
    lung, colon = lc25000.ORGANS["lung_image_sets"], lc25000.ORGANS["colon_image_sets"]
    assert classes == {
        "bmt": set(bmt.CLASSES.options),
        "lc_colon": set(colon.options),
        "lc_lung": set(lung.options),
        "sicapv2": set(sicapv2.CLASSES.options),
        "wsss4luad": set(wsss4luad.CLASSES.options),
    }
    lung_texts = prompts.load("lc_lung").texts("lung_aca")
    assert "an H&E image of adenocarcinoma of the lung." in lung_texts
    assert len(lung_texts) == len(set(lung_texts)) == 30


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        (json.dumps({"classnames": {}}), "no prompts; the layout is"),
        (json.dumps({"0": {"classnames": {"a": ["a"]}, "templates": ["CLASSNAME"]}}), "fewer than two classes"),
        (json.dumps({"0": {"classnames": {"a": ["a"], "b": []}, "templates": ["CLASSNAME"]}}), "class 'b' needs"),
        (json.dumps({"0": {"classnames": {"a": ["a"], "b": ["b"]}, "templates": ["CLASS"]}}), "has no CLASSNAME"),
        (json.dumps({"0": {"classnames": {}, "templates": []}, "1": {}}), "2 sets of prompts"),
    ],
)
def test_prompts_that_are_none(tmp_path, content, told):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(DataError, match=told):
        prompts.load(str(tmp_path / "p.json"))


def test_prompts_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="none of bmt, lc_colon"):
        prompts.load("unknown")
    with pytest.raises(DataError, match="cannot be read"):
        prompts.load(str(tmp_path / "none.json"))
