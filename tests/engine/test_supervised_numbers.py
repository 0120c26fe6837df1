"""Steps of DeepSpeed on two ranks against plain PyTorch on one: loss, gradient norm, and every parameter.

And those of one rank that goes on behind the two's checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from chats import CAPTION, CASES, encoded
from PIL import Image
from safetensors.torch import load_file
from small import Small, as_qwen3_vl
from stage_ranks import STEPS
from transformers import AutoModelForImageTextToText, get_cosine_with_min_lr_schedule_with_warmup

from pathor1 import checkpoints
from pathor1.supervised.encode import IGNORED, load_processor
from pathor1.supervised.engine import BETAS, MAX_GRADIENT_NORM
from pathor1.supervised.parts import choose, merged, part
from pathor1.training import Stage

pytestmark = pytest.mark.timeout(600)

# Of very different lengths, with one picture, two and none: what a rank has says nothing of what the other has.
NAMES = ("question", "two pictures", "no picture", "conversation", "caption", "yes or no", "it begins")
TRAINING = {"steps": 10, "learning_rate": 5e-5, "warmup_steps": 0, "max_tokens": 150, "weight_decay": 0.1}
LORA = {"rank": 4, "alpha": 8}
ONE_PASS = {"places": 3200, "columns": 400, "masked": True}
MANY = {"places": 150, "columns": 150, "masked": False}


def case(
    layout: dict[str, int] = MANY,
    *,
    model: str = "qwen2_5_vl",
    dtype: str = "float32",
    recompute: bool = False,
    resumed: bool = False,
    **training: Any,
) -> dict[str, Any]:
    whole = {**TRAINING, **training}
    return {
        "model": model,
        "training": whole,
        "layout": layout,
        "dtype": dtype,
        "gradient_checkpointing": recompute,
        "resumed": resumed,
    }


ALIKE = {
    "zero1": case(zero_stage=1, resumed=True),
    "zero2": case(ONE_PASS, zero_stage=2),
    "zero2-passes": case(zero_stage=2, resumed=True),
    "zero2-offloaded": case(zero_stage=2, offload=["optimizer"]),
    "zero3": case(ONE_PASS, zero_stage=3),
    "zero3-passes": case(zero_stage=3, resumed=True),
    "zero3-offloaded": case(zero_stage=3, offload=["optimizer", "parameters"]),
    "zero3-recomputed": case(zero_stage=3, recompute=True),
}
FROZEN = {
    "frozen-vision": case(zero_stage=2, freeze=["vision_tower"], resumed=True),
    "frozen-projector": case(zero_stage=3, freeze=["projector", "vision_tower"], resumed=True),
    "frozen-language": case(zero_stage=1, freeze=["language_model"]),
}
ADAPTED = {
    "lora-zero2": case(zero_stage=2, freeze=["vision_tower"], lora=LORA, resumed=True),
    "lora-zero3": case(zero_stage=3, freeze=["vision_tower"], lora=LORA, resumed=True),
    "lora-zero3-offloaded": case(zero_stage=3, lora=LORA, offload=["optimizer", "parameters"]),
}
QWEN3 = {
    "qwen3-zero2": case(model="qwen3_vl", zero_stage=2),
    "qwen3-zero3": case(ONE_PASS, model="qwen3_vl", zero_stage=3, recompute=True),
    "qwen3-lora": case(model="qwen3_vl", zero_stage=2, freeze=["vision_tower", "projector"], lora=LORA),
}
HALF = {f"bfloat16-zero{stage}": case(zero_stage=stage, dtype="bfloat16") for stage in (1, 2, 3)}
ALL = {**ALIKE, **FROZEN, **ADAPTED, **QWEN3, **HALF}
RESUMED = [name for name, values in ALL.items() if values["resumed"]]


@dataclass(frozen=True)
class Done:
    """What came of a case's steps: losses by source, gradient norms, learning rates, and the model's weights."""

    losses: list[list[float]]
    norms: list[float]
    rates: list[float]
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(small: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Small]:
    return {"qwen2_5_vl": small, "qwen3_vl": as_qwen3_vl(small, tmp_path_factory.mktemp("qwen3_vl"))}


@pytest.fixture(scope="module")
def samples(models: dict[str, Small]) -> dict[str, list[tuple[Any, int]]]:
    """For each model, with the numbers of their sources."""
    chosen = [CASES[name] for name in NAMES]
    assert CAPTION in chosen
    return {
        kind: [(sample, place % 2) for place, sample in enumerate(encoded(model, *chosen))]
        for kind, model in models.items()
    }


@pytest.fixture(scope="module")
def ranks(
    models: dict[str, Small], samples: dict[str, list[tuple[Any, int]]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of all cases, run by two ranks, and some of them to their end by one."""
    folder = tmp_path_factory.mktemp("ranks")
    for kind, model in models.items():
        shutil.copytree(model.model, folder / kind)
        (folder / f"{kind}.pkl").write_bytes(pickle.dumps(samples[kind]))
    (folder / "cases.json").write_text(json.dumps(ALL))
    launch(folder, 2)
    launch(folder, 1, "resumed")
    return folder


def launch(folder: Path, count: int, *arguments: str) -> None:
    """Runs `stage_ranks` on so many ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    logs = [folder / f"{count}-{rank}.log" for rank in range(count)]
    running = []
    for rank, log in enumerate(logs):
        variables = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path}
        command = [sys.executable, "-m", "stage_ranks", str(folder), *arguments]
        with log.open("wb") as output:
            running.append(subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(400) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * count, "\n".join(log.read_text()[-2500:] for log in logs)


def of_ranks(folder: Path, name: str) -> Done:
    steps = json.loads((folder / f"{name}.json").read_text())
    return Done(
        losses=[step["losses"] for step in steps],
        norms=[step["gradient_norm"] for step in steps],
        rates=[step["learning_rate"] for step in steps],
        weights=load_file(folder / name / "model.safetensors"),
    )


def plain(model_folder: Path, samples: list[tuple[Any, int]], values: dict[str, Any]) -> Done:
    """The same steps in PyTorch: transformers' own loss of each sample alone, its own pixels, torch's AdamW."""
    training = Stage.model_validate(values["training"])
    processor = load_processor(str(model_folder))
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    choose(model, training)
    trains = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=training.learning_rate, betas=BETAS, weight_decay=training.weight_decay)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, training.warmup_steps, training.steps, min_lr_rate=training.final_learning_rate_fraction
    )
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    learned = [int((sample.labels[1:] != IGNORED).sum()) for sample, _ in samples]
    losses, norms, rates = [], [], []
    for _ in range(STEPS):
        sums = [0.0, 0.0]
        for (sample, source), name, count in zip(samples, NAMES, learned, strict=True):
            pictures = [Image.open(io.BytesIO(data)) for data in CASES[name].images]
            seen = dict(processor.image_processor(images=pictures, return_tensors="pt")) if pictures else {}
            ids = torch.tensor(sample.input_ids.tolist())[None]
            mean = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == image).long(),
                labels=torch.tensor(sample.labels.tolist())[None],
                **seen,
            ).loss
            if mean.requires_grad:  # without a picture nothing of it trains where the language model is frozen
                (mean * count / sum(learned)).backward()
            sums[source] += float(mean.detach()) * count
        losses.append(sums)
        norms.append(float(torch.nn.utils.clip_grad_norm_(trains, MAX_GRADIENT_NORM)))
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with TemporaryDirectory() as folder:  # names in a file are not those in the model
        model.save_pretrained(folder, state_dict=merged(model.state_dict(), training.lora))
        return Done(losses=losses, norms=norms, rates=rates, weights=load_file(f"{folder}/model.safetensors"))


@pytest.fixture(scope="module")
def expected(small: Small, samples: dict[str, list[tuple[Any, int]]]) -> Done:
    return plain(small.model, samples["qwen2_5_vl"], case())


def compare(found: Done, wanted: Done) -> None:
    for ours, theirs in zip(found.losses, wanted.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert found.norms == pytest.approx(wanted.norms, rel=1e-4)
    assert found.rates == pytest.approx(wanted.rates, rel=1e-6)
    assert found.weights.keys() == wanted.weights.keys()
    for name, value in found.weights.items():
        torch.testing.assert_close(
            value, wanted.weights[name], rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_do_what_plain_pytorch_does(ranks: Path, expected: Done, name: str) -> None:
    """With one pass or several a rank, and one rank that has fewer: a token counts the same wherever it is."""
    compare(of_ranks(ranks, name), expected)


def test_the_passes_are_as_many_as_the_layout_makes_them(ranks: Path) -> None:
    passes = {name: json.loads((ranks / f"{name}.json").read_text())[0]["passes"] for name in ALL}
    assert passes["zero2"] == passes["zero3"] == 1
    assert passes["zero2-passes"] == passes["zero3-passes"] == passes["zero1"] == 2


def test_a_mean_of_the_ranks_means_would_be_something_else(samples: dict[str, list[tuple[Any, int]]]) -> None:
    """The samples are so unequal that the tests above would tell."""
    counts = [int((sample.labels != IGNORED).sum()) for sample, _ in samples["qwen2_5_vl"]]
    assert max(counts) >= 2 * min(counts)


@pytest.mark.parametrize("name", [*FROZEN, *ADAPTED, *QWEN3])
def test_what_is_frozen_stays_and_everything_else_moves(
    ranks: Path, models: dict[str, Small], samples: dict[str, list[tuple[Any, int]]], name: str
) -> None:
    found, values = of_ranks(ranks, name), ALL[name]
    model = models[values["model"]].model
    before = load_file(model / "model.safetensors")
    training = Stage.model_validate(values["training"])
    assert found.weights.keys() == before.keys()
    for key, value in found.weights.items():
        adapted = training.lora is not None and part(key) == "language_model"
        linear = key.endswith("_proj.weight")
        stays = part(key) in training.freeze or (adapted and not linear)
        moved = not torch.equal(value, before[key])
        assert moved != stays, key
    compare(found, plain(model, samples[values["model"]], values))


@pytest.mark.parametrize("name", RESUMED)
def test_one_rank_goes_on_where_two_have_stopped(ranks: Path, name: str) -> None:
    """From DeepSpeed's universal checkpoint: the second step and all weights are those of two ranks."""
    whole, resumed = of_ranks(ranks, name), of_ranks(ranks, f"{name}-resumed")
    last = Done(losses=whole.losses[1:], norms=whole.norms[1:], rates=whole.rates[1:], weights=whole.weights)
    compare(resumed, last)


@pytest.mark.parametrize("count", [1, 2])
def test_the_checkpoint_of_another_model_is_refused_in_one_line(ranks: Path, count: int) -> None:
    """By as many ranks as have written it, and by another number of them."""
    told = json.loads((ranks / f"refused-{count}.json").read_text())
    assert told.keys() == set(RESUMED)
    for name, line in told.items():
        path = checkpoints.folder(ranks / f"{name}-saved", 1)
        assert line.startswith(f"{path}: not a checkpoint of this model and what trains of it ("), name
        assert "\n" not in line


@pytest.mark.parametrize("name", HALF)
def test_in_bfloat16_the_loss_is_about_the_same_and_every_weight_has_its_type(
    ranks: Path, expected: Done, name: str
) -> None:
    found = of_ranks(ranks, name)
    for ours, theirs in zip(found.losses, expected.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2)
    assert found.norms == pytest.approx(expected.norms, rel=5e-2)
    assert {value.dtype for value in found.weights.values()} == {torch.bfloat16}
