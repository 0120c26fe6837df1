"""The warm start on Ray Train and DeepSpeed, and the evaluation of what it made: real runs of a few steps."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from processes import running, wait_until
from safetensors.numpy import load_file
from small import Small

from pathor1.samples import read

TIME = 500  # seconds that a run may take on two busy cores
STEPS = 40
RATE = 3e-3


@pytest.fixture(scope="module")
def taught(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after a warm start on two workers, each with half of every batch."""
    folder = tmp_path_factory.mktemp("taught")
    settings = {
        "runs_dir": str(folder),
        "model.path": str(folder / "model"),
        "warm_start.model": str(small.model),
        "warm_start.data": json.dumps([str(small.train)]),
        "warm_start.steps": str(STEPS),
        "warm_start.batch_size": "16",
        "warm_start.warmup_steps": "4",
        "warm_start.learning_rate": str(RATE),
        "warm_start.workers": "2",
    }
    arguments = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    # Nothing is compiled: there may be no compiler.
    compiling = {"CXX": "/bin/false", "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    with running(["pathor1.cli", "sft", str(small.recipe), *arguments], folder / "log", compiling) as command:
        assert command.finish(TIME) == 0, command.output()[-3000:]
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")
    return folder


def test_the_loss_falls_along_the_schedule(taught: Path) -> None:
    rows = [json.loads(line) for line in (taught / "run/warm_start.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    # An untrained model is as unsure as its vocabulary is large; in forty steps it learns the frame of an answer.
    assert rows[0]["loss"] > 4.0
    assert rows[-1]["loss"] < 1.5
    # Warm-up to the highest rate, then a cosine to a tenth of it.
    progress = (STEPS - 1 - 4) / (STEPS - 4)
    last = RATE * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
    assert max(row["learning_rate"] for row in rows) == pytest.approx(RATE)
    assert rows[-1]["learning_rate"] == pytest.approx(last, rel=1e-3)
    assert all(row["data/left_out"] == 0 for row in rows)
    assert all(row["tokens"] > row["tokens/learned"] > 0 for row in rows)
    # Rows of 2048 tokens hold twenty samples and more: what is left over is little.
    assert max(row["tokens/padding_share"] for row in rows) < 0.5


def test_the_model_is_whole_and_moved(taught: Path, small: Small) -> None:
    before, after = load_file(small.model / "model.safetensors"), load_file(taught / "model/model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.isfinite(after[name]).all() for name in after)
    assert all(not np.array_equal(before[name], after[name]) for name in before if "visual" in name)
    assert (taught / "model/tokenizer_config.json").is_file()
    assert not (taught / "run/.ray_train").exists()


def test_a_loss_that_is_no_number_ends_the_stage_without_a_model(small: Small, tmp_path: Path) -> None:
    settings = [f"runs_dir={tmp_path}", f"model.path={tmp_path / 'model'}", f"warm_start.model={small.model}"]
    settings += [f"warm_start.data={json.dumps([str(small.train)])}", "warm_start.steps=20", "warm_start.batch_size=8"]
    settings += ["warm_start.warmup_steps=1", "warm_start.learning_rate=1e30"]
    arguments = [text for setting in settings for text in ("--set", setting)]
    with running(["pathor1.cli", "sft", str(small.recipe), *arguments], tmp_path / "log") as command:
        assert command.finish(TIME) == 2, command.output()[-3000:]
        last = command.output().strip().splitlines()[-1]
    assert re.fullmatch(
        r"pathor1: step \d+: the (loss|gradient_norm) is (nan|inf); lower warm_start.learning_rate", last
    )
    assert not (tmp_path / "model").exists()


def test_another_model_is_never_replaced(taught: Path, small: Small) -> None:
    target = f"model.path={taught / 'precious'}"
    (taught / "precious").mkdir(exist_ok=True)
    (taught / "precious/config.json").write_text("{}")
    arguments = ["--set", target, "--set", f"warm_start.model={small.model}", "--set", "warm_start.steps=1"]
    arguments += ["--set", f"warm_start.data={json.dumps([str(small.train)])}", "--set", f"runs_dir={taught}"]
    with running(["pathor1.cli", "sft", str(small.recipe), *arguments], taught / "log2") as command:
        assert command.finish(60) == 2
    assert "was not made by a warm start" in command.output()
    assert [path.name for path in (taught / "precious").iterdir()] == ["config.json"]


def test_evaluation_counts_every_question_of_each_set(taught: Path, small: Small) -> None:
    settings = [f"runs_dir={taught}", f"model.path={taught / 'model'}", f"data.test={json.dumps([str(small.train)])}"]
    settings += ["evaluation.samples=40", "evaluation.sampled_answers=1"]
    arguments = [text for setting in settings for text in ("--set", setting)]
    with running(["pathor1.cli", "evaluate", str(small.recipe), *arguments], taught / "log3") as command:
        assert command.finish(TIME) == 0, command.output()[-3000:]
    results = json.loads((taught / "run/eval/held_out.json").read_text())
    for measure in ("accuracy", "format", "accuracy_sampled", "accuracy_shuffled_pictures"):
        assert results[measure]["base"].keys() == {"rendered"}
        assert results[measure]["base"]["rendered"]["n"] == 40
    asked = list(read(small.train))[:40]
    assert results["chance"]["rendered"] == pytest.approx(np.mean([1 / len(one.options or ()) for one in asked]))
    # The frame of an answer is learned by then; the model that it came from has none.
    assert results["format"]["base"]["rendered"]["value"] > 0.8
