"""The contrastive step: the loss and gradients of one large batch, on any number of ranks, in any number of passes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clip_models import write_config
from clip_ranks import pairs, run

from pathor1 import checkpoints
from pathor1.clip import checkpoint, models
from pathor1.clip.step import Trainer
from pathor1.contrastive import ClipModel, Contrast
from pathor1.data.stream import StreamState
from pathor1.errors import RunError

CASES = {"one": {"passes": 1}, "four": {"passes": 4}}
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_config(folder)
    (folder / "cases.json").write_text(json.dumps(CASES))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "clip_ranks", str(folder)],
            cwd=TESTS,
            env={**os.environ, **told, "RANK": str(rank), "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=500) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """What one process computes in one pass: what open_clip's loss says of the batch."""
    return run(folder, passes=1)


def same(one, other, tolerance=1e-5):
    assert one["losses"] == pytest.approx(other["losses"], abs=tolerance)
    for mine, theirs in zip(one["gradients"], other["gradients"], strict=True):
        assert mine.keys() == theirs.keys()
        assert "logit_scale" in mine
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], atol=tolerance, rtol=1e-4, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_gradients_of_one_large_batch(case, folder, whole):
    same(torch.load(folder / f"{case}.pt"), whole)


def test_passes_have_the_gradients_of_one_large_batch(folder, whole):
    same(run(folder, passes=4), whole)
    assert whole["gradients"][0]["logit_scale"].abs() > 1e-4, "what is added up once for each pass would show"


def test_the_loss_is_that_of_the_whole_batch_by_its_formula(folder, whole):
    torch.manual_seed(3)
    model = models.build(models.find(ClipModel(architecture=str(folder / "tiny.json"))))
    pixels, tokens = pairs(1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        images = model.encode_image((pixels.permute(0, 3, 1, 2) / 255 - mean) / std, normalize=True)
        texts = model.encode_text(tokens, normalize=True)
        similar = images @ texts.T * model.logit_scale.exp()
    right = similar.diagonal()
    expected = (similar.logsumexp(0) - right).mean() / 2 + (similar.logsumexp(1) - right).mean() / 2
    assert whole["losses"][0] == pytest.approx(float(expected), abs=1e-5)


def test_a_checkpoint_goes_on_as_if_nothing_had_been(folder, tmp_path):
    stage = Contrast(train=["x"], steps=6, batch_size=16, learning_rate=1e-3, warmup_steps=2)

    def trainer(given):
        torch.manual_seed(3)
        found = models.find(given)
        return Trainer(models.build(found), stage), found

    whole, found = trainer(ClipModel(architecture=str(folder / "tiny.json")))
    losses = [whole.step(*pairs(number), number=number).loss for number in range(1, 5)]
    part, _ = trainer(ClipModel(architecture=str(folder / "tiny.json")))
    for number in (1, 2):
        part.step(*pairs(number), number=number)
    stream = StreamState(seed=0, sources=())
    checkpoint.save(
        part.model,
        found.config,
        models.tokenizer(found),
        part.optimizer,
        tmp_path,
        2,
        stream=stream,
        ranks=1,
        recipe="",
        keep=2,
        spare=(),
    )
    saved = checkpoints.latest(tmp_path)
    assert saved is not None
    assert checkpoints.read(saved).stream == stream
    again, _ = trainer(ClipModel(weights=str(saved)))
    checkpoint.load_optimizer(again.optimizer, saved)
    assert [again.step(*pairs(number), number=number).loss for number in (3, 4)] == pytest.approx(losses[2:], abs=1e-6)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    fresh, _ = trainer(ClipModel(weights=str(saved)))  # what the optimizer knows counts
    assert [fresh.step(*pairs(number), number=number).loss for number in (3, 4)][1] != pytest.approx(
        losses[3], abs=1e-4
    )
    (saved / checkpoint.OPTIMIZER).write_bytes(b"no state")
    with pytest.raises(RunError, match="not a checkpoint of this model"):
        checkpoint.load_optimizer(again.optimizer, saved)


def test_bfloat16_is_near(folder, whole):
    near = run(folder, passes=2, dtype="bfloat16")
    assert near["losses"] == pytest.approx(whole["losses"], abs=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in near["weights"].values())


def test_the_rate_and_what_decays(folder):
    stage = Contrast(train=["x"], steps=110, warmup_steps=10, learning_rate=1.0, final_learning_rate_fraction=0.1)
    model = torch.nn.Module()
    model.weight, model.gain = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    model.logit_scale = torch.nn.Parameter(torch.ones([]))
    model.visual = torch.nn.Identity()
    model.visual.image_mean = model.visual.image_std = (0.5, 0.5, 0.5)
    trainer = Trainer(model, stage)
    rates = [trainer.learning_rate(number) for number in (1, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 1.0, 0.55, 0.1])
    plain, rest = trainer.optimizer.param_groups
    assert (plain["weight_decay"], rest["weight_decay"]) == (0.0, 0.2)
    assert [id(each) for each in rest["params"]] == [id(model.weight)]
    assert len(plain["params"]) == 2
