"""open_clip's models: what a recipe may name, the activation that belongs to weights, saved and loaded again."""

from __future__ import annotations

import json
import warnings

import numpy as np
import open_clip
import pytest
import torch
from clip_models import write_config
from PIL import Image

from pathor1.clip import models
from pathor1.clip.models import Encoder
from pathor1.contrastive import ClipModel
from pathor1.errors import ModelError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"), "tiny")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("plain"), "tiny-plain", quick_gelu=False)


@pytest.fixture(scope="module")
def saved(config, tmp_path_factory):
    """A folder of a saved model, and the model."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(1)
    found = models.find(ClipModel(architecture=str(config)))
    model = models.build(found)
    models.save(model, found.config, models.tokenizer(found), folder)
    return folder, model


def test_a_saved_folder_is_loaded_by_open_clip_itself(saved):
    folder, model = saved
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a picture of melanoma"])
    picture = preprocess(Image.new("RGB", (80, 60), "red"))[None]
    with torch.no_grad():
        for mine, theirs in zip(model.eval()(picture, tokens), loaded.eval()(picture, tokens), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert tokens.shape == (1, 24)
    assert json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is True


def test_a_saved_folder_is_itself_again_and_says_what_it_is(saved, config):
    folder, model = saved
    for given in (
        ClipModel(weights=str(folder)),
        ClipModel(weights=str(folder), architecture=str(config), activation="quick_gelu"),
    ):
        found = models.find(given)
        assert models.activation_of(found.config) == "quick_gelu"
        assert models.digest(models.build(found), found.config) == models.digest(model, found.config)


def test_another_activation_than_the_weights_were_trained_with_is_refused(saved, plain):
    folder, _ = saved
    with pytest.raises(ModelError, match="trained with quick_gelu, and tiny-plain has gelu"):
        models.find(ClipModel(architecture=str(plain), weights=str(folder)))
    with pytest.raises(ModelError, match="trained with gelu, and .* has quick_gelu"):
        models.find(ClipModel(weights=str(folder), activation="gelu"))
    # open_clip itself only warns: the weights fit, and the model is worse.
    with pytest.raises(ModelError, match="trained with quick_gelu, and ViT-B-16 has gelu.*take ViT-B-16-quickgelu"):
        models.find(ClipModel(architecture="ViT-B-16", weights="openai"))
    assert models.find(ClipModel(architecture="ViT-B-16-quickgelu", weights="openai")).weights == "openai"


def test_a_bare_file_has_to_be_told_of(saved, config, plain):
    folder, model = saved
    file = str(folder / models.WEIGHTS)
    with pytest.raises(ModelError, match="does not say what they were trained with; set model.activation"):
        models.find(ClipModel(architecture=str(config), weights=file))
    with pytest.raises(ModelError, match="trained with quick_gelu, and tiny-plain"):
        models.find(ClipModel(architecture=str(plain), weights=file, activation="quick_gelu"))
    found = models.find(ClipModel(architecture=str(config), weights=file, activation="quick_gelu"))
    assert models.digest(models.build(found), found.config) == models.digest(model, found.config)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"architecture": "ViT-B-17"}, "open_clip has no such model"),
        ({"architecture": "ViT-B-16-quickgelu", "weights": "nobody"}, "no file, no folder, and no tag"),
        ({"weights": "nowhere"}, "no folder of open_clip's; with a file or a tag, set model.architecture"),
        ({"weights": "/"}, "not a folder of open_clip's"),
        ({"architecture": "missing.json"}, "no such file"),
    ],
)
def test_what_is_no_model(given, told):
    with pytest.raises(ModelError, match=told):
        models.find(ClipModel(**given))


def test_files_that_are_none(tmp_path, config):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        models.find(ClipModel(architecture=str(tmp_path / "broken.json")))
    (tmp_path / "weights.pt").write_bytes(b"not weights")
    found = models.find(
        ClipModel(architecture=str(config), weights=str(tmp_path / "weights.pt"), activation="quick_gelu")
    )
    with pytest.raises(ModelError, match="weights.pt: cannot be loaded"):
        models.build(found)


def test_weights_of_another_shape(saved, tmp_path):
    folder, _ = saved
    larger = write_config(tmp_path, "larger", embed_dim=32)
    found = models.find(
        ClipModel(architecture=str(larger), weights=str(folder / models.WEIGHTS), activation="quick_gelu")
    )
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.build(found)
    with pytest.raises(ModelError, match="is no .*larger.json"):
        models.find(ClipModel(architecture=str(larger), weights=str(folder)))


def test_models_of_an_evaluation(saved, config):
    folder, _ = saved
    assert models.parse(str(folder)) == ClipModel(weights=str(folder))
    assert models.parse("ViT-B-16-quickgelu@openai") == ClipModel(architecture="ViT-B-16-quickgelu", weights="openai")
    bare = models.parse(f"{config}@{folder / models.WEIGHTS}")
    assert bare.activation == "quick_gelu"
    with pytest.raises(ModelError, match="write ARCHITECTURE@WEIGHTS"):
        models.parse("@openai")


def test_features_are_those_of_open_clip(saved):
    folder, model = saved
    encoder = Encoder(models.find(ClipModel(weights=str(folder))))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        expected = model.eval().encode_image(preprocess(picture)[None])
    np.testing.assert_allclose(encoder.images([encoder.preprocess(picture)]), expected.numpy(), atol=1e-5)
    texts = encoder.texts(["melanoma", "lipoma"])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(models.unit(encoder.images([encoder.preprocess(picture)]))), 1.0, atol=1e-5
    )
