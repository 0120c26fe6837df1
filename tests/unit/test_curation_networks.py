"""The classifier's and the embedding's parts that need no Ray."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curated import recipe, small_clip
from formats import png
from PIL import Image
from safetensors.torch import save_file

from pathor1.checkpoints import MODEL
from pathor1.clip.models import Encoder, find, unit
from pathor1.contrastive import ClipModel
from pathor1.curation.classifier import MOST_WEIGHT, Predict, class_weights, network, normal, square, turned
from pathor1.curation.embedding import Embed, load_open_clip
from pathor1.curation.level import LevelStage
from pathor1.curation.packages import versions
from pathor1.curation.recipe_samples import Subfield
from pathor1.errors import DataError, ModelError, RunError

CLASSES = ["ihc", "fish", "other"]


def settings(**values: Any) -> Subfield:
    return Subfield(**{"labels": ["x"], "model": "test_efficientnet", "size": 32, **values})


def of_colour(colour: str, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("width", "height"), [(200, 50), (50, 200), (8, 16), (64, 64)])
def test_a_picture_keeps_its_shape_within_the_square(width: int, height: int) -> None:
    pixels = np.asarray(square(of_colour("black", width, height), 64))
    assert pixels.shape == (64, 64, 3)
    dark = (pixels < 128).all(axis=2)
    rows, columns = dark.any(axis=1).sum(), dark.any(axis=0).sum()
    assert max(rows, columns) == 64
    assert columns / rows == pytest.approx(width / height, rel=0.05)
    with pytest.raises(DataError):
        square(b"no picture", 64)


def test_rare_classes_count_more_up_to_a_limit() -> None:
    weights = class_weights(np.array([0] * 90 + [1] * 10), 3)
    assert weights.tolist()[:2] == pytest.approx([100 / 90 / 2, 100 / 10 / 2])
    assert class_weights(np.array([0] * 999 + [1]), 2).tolist()[1] == MOST_WEIGHT


def test_a_section_is_turned_and_mirrored_into_all_eight_positions() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    found = {turned(pixels, np.random.default_rng(seed)).tobytes() for seed in range(80)}
    assert len(found) == 8


def test_pixels_are_normalised_as_imagenets_networks_take_them() -> None:
    pixels = np.stack([np.full((4, 4, 3), 255, dtype=np.uint8), np.zeros((4, 4, 3), dtype=np.uint8)])
    found = normal(pixels, torch.device("cpu"))
    assert found.shape == (2, 3, 4, 4)
    assert found[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)
    assert found[1, 2, 3, 3].item() == pytest.approx(-0.406 / 0.225)


def test_pretrained_weights_come_from_a_file_and_the_head_is_ours(tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = network(settings(), 1000)
    save_file(made.state_dict(), str(tmp_path / "w.safetensors"))
    loaded = network(settings(weights=str(tmp_path / "w.safetensors")), 3)
    assert torch.equal(loaded.conv_stem.weight, made.conv_stem.weight)
    assert loaded.get_classifier().weight.shape[0] == 3
    assert not torch.equal(network(settings(), 3).conv_stem.weight, made.conv_stem.weight)


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'efficientnot' is no model that timm knows"):
        network(settings(model="efficientnot"), 3)
    with pytest.raises(ModelError, match=r"subfield\.weights: .*none\.pth: no such file"):
        network(settings(weights=str(tmp_path / "none.pth")), 3)
    save_file({"x": torch.zeros(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ModelError, match="no weights of test_efficientnet"):
        network(settings(weights=str(tmp_path / "other.safetensors")), 3)
    with pytest.raises(ModelError, match="neither a folder nor a model that open_clip knows"):
        load_open_clip("ViT-Z-99", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no weights that open_clip can load"):
        load_open_clip(str(tmp_path / "empty"), None)


def test_predictions_are_probabilities_and_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(network(settings(), 3).state_dict(), str(tmp_path / "w.safetensors"))
    predict = Predict(settings(batch_size=2), CLASSES, tmp_path / "w.safetensors", "caption")
    rows = [
        {"id": "a", "image": png(1, (40, 30)), "caption": "A"},
        {"id": "bad", "image": b"x", "caption": "B"},
        {"id": "c", "image": png(2, (30, 40)), "caption": "C"},
        {"id": "bad2", "image": b"", "caption": "D"},
    ]
    found = list(predict(iter(rows)))
    assert [row["id"] for row in found] == ["a", "c"]
    for row in found:
        assert {row["predicted"], row["second"]} < {*CLASSES}
        assert row["predicted"] != row["second"]
        assert 1 / 3 < row["confidence"] <= 1
        assert 0 <= row["margin"] <= row["confidence"]


def test_an_embedding_is_of_picture_and_caption_by_their_weight(tmp_path: Path) -> None:
    folder = str(small_clip(tmp_path / "clip"))
    rows = [
        {"id": name, "image": png(side, (40, side)), "caption": text}
        for name, side, text in (
            ("a", 40, "A seminoma."),
            ("same picture", 40, "A thymoma of the mediastinum."),
            ("same caption", 90, "A seminoma."),
        )
    ]
    rows.append({"id": "bad", "image": b"x", "caption": "A seminoma."})

    def distances(weight: float) -> tuple[float, float]:
        found = {row["id"]: np.array(row["embedding"]) for row in Embed(folder, None, weight, 2, "caption")(iter(rows))}
        assert found.keys() == {"a", "same picture", "same caption"}
        assert all(np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in found.values())
        a = found.pop("a")
        return tuple(float(np.sum((a - other) ** 2)) for other in found.values())  # type: ignore[return-value]

    by_caption, by_picture = distances(0.0)[0], distances(1.0)[1]
    assert distances(1.0)[0] == pytest.approx(0, abs=1e-9)
    assert distances(0.0)[1] == pytest.approx(0, abs=1e-9)
    assert by_caption > 0.01
    assert by_picture > 1e-6
    assert distances(0.25)[0] == pytest.approx(0.75 * by_caption, rel=1e-4)
    assert distances(0.25)[1] == pytest.approx(0.25 * by_picture, rel=1e-3)


def test_a_run_of_clip_train_is_the_model_of_its_last_checkpoint(tmp_path: Path) -> None:
    run = small_clip(tmp_path / "clip")
    last = run / "checkpoints/step-000005"
    rows = [{"id": "a", "image": png(40, (70, 40)), "caption": "A seminoma, with a long caption " * 20}]
    (found,) = Embed(str(run), None, 0.5, 2, "caption")(iter(rows))
    encoder = Encoder(find(ClipModel(weights=str(run))))
    picture = encoder.preprocess(Image.open(io.BytesIO(rows[0]["image"])).convert("RGB"))
    seen, said = unit(encoder.images([picture]))[0], encoder.texts([rows[0]["caption"]])[0]
    assert found["embedding"] == pytest.approx(np.sqrt(0.5) * np.concatenate([seen, said]), abs=1e-6)
    for folder in (last, last / MODEL):
        assert list(Embed(str(folder), None, 0.5, 2, "caption")(iter(rows))) == [found]
    stage = LevelStage(recipe(tmp_path, level={"model": str(run)}))
    before = stage.settings()
    weights = last / MODEL / "open_clip_model.safetensors"
    os.utime(weights, ns=(0, 0))
    assert stage.settings() != before, "a run that has gone on is another model"
    (tmp_path / "begun/checkpoints").mkdir(parents=True)
    with pytest.raises(RunError, match="a run without a checkpoint"):
        load_open_clip(str(tmp_path / "begun"), None)


def test_a_package_that_is_missing_is_said_in_one_line() -> None:
    assert versions("timm").keys() == {"timm"}
    with pytest.raises(RunError, match=r"^timmy is not installed; install pathor1\[curation\]$"):
        versions("timm", "timmy")
