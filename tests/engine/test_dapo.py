"""DAPO with verl's trainer and vLLM's engine, on sets that have little or nothing to teach: short real runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from processes import running
from safetensors.numpy import load_file
from small import Small

from pathor1.samples import Sample, read, write

STARTED = 600  # seconds that a run may take to its first step on two busy cores
pytestmark = pytest.mark.timeout(1800)
OPTIONS = ("one", "two", "three", "four", "five", "six")


@pytest.fixture(scope="module")
def guesser(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned the form of an answer and guesses among A to D: its groups are rarely all right."""
    folder = tmp_path_factory.mktemp("guesser")
    settings = [f"runs_dir={folder}", f"model.path={folder / 'model'}", f"warm_start.model={small.model}"]
    settings += [f"warm_start.data={json.dumps([str(small.train)])}", "warm_start.steps=80"]
    settings += ["warm_start.batch_size=16", "warm_start.warmup_steps=4", "warm_start.learning_rate=3e-3"]
    arguments = [text for setting in settings for text in ("--set", setting)]
    with running(["pathor1.cli", "sft", str(small.recipe), *arguments], folder / "log") as command:
        assert command.finish(STARTED) == 0, command.output()[-3000:]
    return folder / "model"


def hopeless(samples: Iterable[Sample]) -> list[Sample]:
    """The same pictures with a right answer that the model never gives."""
    return [replace(sample, id=f"hopeless/{sample.id}", options=OPTIONS, answer="F") for sample in samples]


def run(small: Small, folder: Path, *settings: str, seconds: int = STARTED + 200) -> str:
    arguments = [text for setting in (f"runs_dir={folder}", *settings) for text in ("--set", setting)]
    command_line = ["pathor1.cli", "rl", str(small.recipe), "--set", "rl.algorithm=dapo", *arguments]
    with running(command_line, folder / "log") as command:
        assert command.finish(seconds) == 0, command.output()[-3000:]
        return command.output()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def rows(folder: Path, step: int) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"run/ledger/step-{step:06d}.parquet").to_pylist()


def test_nothing_to_learn_ends_in_time_without_an_update_and_says_so(small: Small, tmp_path: Path) -> None:
    """An untrained model is always wrong. Its answers differ in length, and so in the shaped reward: no matter."""
    settings = ("rl.steps=2", "rl.prompts_per_step=4", "rl.group_size=24", "rl.max_generated_groups=2")
    output = run(small, tmp_path, *settings)
    said = [line for line in output.splitlines() if line.startswith("step ")]
    assert len(said) == 2
    assert all("no update: too few of 8 groups have a difference to learn from" in line for line in said)
    assert all("8 all_wrong" in line for line in said)
    for step, values in enumerate(metrics(tmp_path), start=1):
        assert (values["steps/skipped"], values["groups/asked"], values["groups/trained"]) == (1, 8, 0)
        assert (values["dropped/all_wrong"], values["tokens/trained"]) == (8, 0)
        assert "actor/gradient_norm" not in values
        written = rows(tmp_path, step)
        assert len(written) == 8 * 24
        assert all(row["advantage"] is None and row["dropped"] == "all_wrong" for row in written)
        assert len({row["length"] for row in written}) > 1, "shaped rewards differ, as answers have different lengths"
    record = pq.read_table(tmp_path / "run/checkpoints/step-000002/questions.parquet").to_pylist()
    assert [(row["attempts"], row["mean_accuracy"]) for row in record] == [(1, 0.0)] * 16, "of both steps"
    before = load_file(small.model / "model.safetensors")
    after = load_file(tmp_path / "run/checkpoints/step-000002/huggingface/model.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_exactly_one_group_with_a_difference_is_learned_from_alone(small: Small, guesser: Path, tmp_path: Path) -> None:
    samples = [sample for sample in read(small.train) if len(sample.options or ()) == 4][:8]
    write([samples[0], *hopeless(samples[1:])], tmp_path / "train.parquet")
    run(
        small,
        tmp_path,
        f"model.path={guesser}",
        f"data.train={json.dumps([str(tmp_path / 'train.parquet')])}",
        "data.max_prompt_tokens=160",
        "rl.steps=1",
        "rl.prompts_per_step=4",
        "rl.group_size=16",
        "rl.max_generated_groups=2",
    )
    (values,) = metrics(tmp_path)
    assert (values["groups/asked"], values["groups/trained"], values["groups/informative"]) == (8, 1, 1)
    assert values["dropped/all_wrong"] == 7
    assert values["actor/gradient_norm"] > 0
    assert values["tokens/trained"] < values["tokens/generated"] / 4
    written = rows(tmp_path, 1)
    assert len(written) == 8 * 16
    trained = [row for row in written if row["dropped"] is None]
    assert {row["id"] for row in trained} == {samples[0].id}
    accuracy, advantage = (np.array([row[name] for row in trained]) for name in ("accuracy", "advantage"))
    assert 0 < accuracy.mean() < 1
    assert advantage[accuracy == 1].min() > 0 > advantage[accuracy == 0].max()
    assert all(row["advantage"] is None for row in written if row["dropped"])


def test_groups_that_wait_are_learned_from_later_also_after_the_agent_is_killed(
    small: Small, guesser: Path, tmp_path: Path
) -> None:
    """Half of the questions are hopeless and a step asks for four: too few for an update of four, so they wait."""
    samples = [sample for sample in read(small.train) if len(sample.options or ()) == 4][:16]
    write([*samples[:8], *hopeless(samples[8:])], tmp_path / "train.parquet")
    settings = [
        f"runs_dir={tmp_path}",
        f"model.path={guesser}",
        f"data.train={json.dumps([str(tmp_path / 'train.parquet')])}",
        "data.max_prompt_tokens=160",
        "rl.algorithm=dapo",
        "rl.steps=6",
        "rl.prompts_per_step=4",
        "rl.group_size=8",
        "rl.max_generated_groups=1",
        "rl.min_groups=4",
        "rl.max_carry_steps=4",
        "rl.save_every=1",
        "rl.keep_checkpoints=6",
    ]
    arguments = [text for setting in settings for text in ("--set", setting)]
    with running(["pathor1.cli", "rl", str(small.recipe), *arguments], tmp_path / "log") as command:
        command.wait_for("step 1/6  no update", STARTED)
        command.kill_one("QuestionGroupWorker")
        assert command.finish(STARTED + 200) == 0, command.output()[-3000:]
        (line,) = [line for line in command.output().splitlines() if "restart 1 of 3" in line]
    assert line.startswith("run: attempt 1 has failed (the agent (process "), line
    steps = metrics(tmp_path)
    waiting = steps[0]["carried/to_next"]
    assert 1 <= waiting <= 3
    assert [values["step"] for values in steps] == [1, 2, 3, 4, 5, 6]
    assert [values["run/restarts"] for values in steps][-1] == 1
    written = [row for step in range(1, 7) for row in rows(tmp_path, step)]
    # Every rollout of every question that was asked is on record once.
    assert set(Counter((row["group"], row["rollout"]) for row in written).values()) == {1}
    assert len(written) == 8 * sum(values["groups/asked"] for values in steps)
    carried = {row["group"] for row in written if row["asked"] < row["step"] and row["dropped"] is None}
    asked_first = {row["group"] for row in written if row["asked"] == 1 and row["dropped"] is None}
    assert len(asked_first) == waiting
    assert asked_first <= carried, "what waited when the run was killed was learned from"
    updates = [values for values in steps if not values["steps/skipped"]]
    assert updates
    assert all(values["groups/trained"] == 4 for values in updates)
    assert updates[0]["carried/from_before"] >= waiting
    assert updates[0]["carried/importance_weight_max"] > 0
    assert all(values["rollout/probability_difference_max"] < 1e-3 for values in updates)
    assert any(values["carried/age_max"] >= 1 for values in updates)
