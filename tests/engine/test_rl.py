"""GRPO with verl's trainer and vLLM's engine: real runs of a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from processes import running, wait_until
from safetensors.numpy import load_file
from small import Small

STARTED = 600  # seconds that a run may take to its first step on two busy cores
# A test here is up to two runs, each of which takes minutes on a machine that does other things as well.
pytestmark = pytest.mark.timeout(1800)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, step: int) -> dict[str, Any]:
    return load_file(run / f"checkpoints/step-{step:06d}/huggingface/model.safetensors")


def groups(run: Path, step: int) -> set[tuple[str, str]]:
    """Which questions a step learned from: (number in the run, sample id)."""
    rows = pq.read_table(run / f"ledger/step-{step:06d}.parquet").to_pylist()
    return {(row["group"], row["id"]) for row in rows}


@pytest.fixture(scope="module")
def uninterrupted(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of four steps."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    arguments = ["pathor1.cli", "rl", str(small.recipe), "--set", f"runs_dir={folder}"]
    with running(arguments, folder / "log") as command:
        assert command.finish(STARTED + 200) == 0, command.output()[-3000:]
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")
    return folder / "run"


def test_every_step_learns_and_vllm_serves_what_was_learned(uninterrupted: Path, small: Small) -> None:
    steps = metrics(uninterrupted)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert all(step["actor/gradient_norm"] > 0 for step in steps)
    # Each step's answers come from vLLM with the weights of the step before: had one update not reached it, its
    # probabilities would be those of another model.
    assert all(step["rollout/probability_difference_max"] < 1e-3 for step in steps)
    before, after = load_file(small.model / "model.safetensors"), weights(uninterrupted, 4)
    assert before.keys() == after.keys()
    moved = max(float(np.abs(after[name] - before[name]).max()) for name in before)
    assert moved > 2e-3, "eight updates of AdamW at 2e-3 move some weight by more than one update's worth"


def test_the_ledger_has_every_rollout_with_group_relative_advantages(uninterrupted: Path) -> None:
    rows = pq.read_table(uninterrupted / "ledger/step-000001.parquet").to_pylist()
    assert len(rows) == 8 * 4
    by_group: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        assert row["total"] == pytest.approx(row["format"] + row["accuracy"] + row["length"])
        by_group.setdefault(row["group"], []).append(row)
    assert [sorted(row["rollout"] for row in group) for group in by_group.values()] == [[0, 1, 2, 3]] * 8
    for group in by_group.values():
        totals = np.array([row["total"] for row in group])
        expected = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-6)
        assert [row["advantage"] for row in group] == pytest.approx(expected.tolist(), abs=1e-4)


def test_no_question_comes_twice_in_an_epoch(uninterrupted: Path) -> None:
    seen = [group for step in (1, 2, 3, 4) for group in groups(uninterrupted, step)]
    assert len(seen) == len(set(seen)) == 4 * 8
    assert {group for group, _ in seen} == {str(number) for number in range(32)}
    assert len({sample for _, sample in seen}) == 32


def test_a_killed_run_resumes_at_its_step_with_its_weights_and_its_questions(
    small: Small, uninterrupted: Path, tmp_path: Path
) -> None:
    arguments = ["pathor1.cli", "rl", str(small.recipe), "--set", f"runs_dir={tmp_path}"]
    with running(arguments, tmp_path / "log") as command:
        command.wait_for("step 3/4", STARTED)
        command.kill()
        # Ray's two agents look five times before they believe that their node is gone, and then tell it so in vain.
        wait_until(lambda: not command.left_behind(), 180, "no process left behind by a killed run")
    run = tmp_path / "run"
    saved = weights(run, 2)
    with running(["pathor1.cli", "rl", "--resume", str(run)], tmp_path / "log2") as command:
        assert command.finish(STARTED + 200) == 0, command.output()[-3000:]
    steps = metrics(run)
    assert [step["step"] for step in steps] == [1, 2, 3, 4], "step 3 was run again, not counted twice"
    # vLLM is given the checkpoint's weights, not those that the recipe starts from.
    assert all(step["rollout/probability_difference_max"] < 1e-3 for step in steps)
    for step in (1, 2, 3, 4):
        assert groups(run, step) == groups(uninterrupted, step)
    after = weights(run, 4)
    assert any(not np.array_equal(saved[name], after[name]) for name in saved)
    rates = [step["actor/next_learning_rate"] for step in steps]
    assert rates == [step["actor/next_learning_rate"] for step in metrics(uninterrupted)]


def test_a_run_whose_engine_serves_other_weights_stops_and_says_so(small: Small, tmp_path: Path) -> None:
    # Rounding alone differs by more than this between two programs.
    arguments = ["pathor1.cli", "rl", str(small.recipe), "--set", f"runs_dir={tmp_path}"]
    arguments += ["--set", "rl.max_probability_difference=1e-12"]
    with running(arguments, tmp_path / "log") as command:
        assert command.finish(STARTED) == 2
        last = command.output().strip().splitlines()[-1]
    assert last.startswith("pathor1: step 1: a token's probability differs by ")
    assert "vLLM does not serve the actor's weights" in last


def test_two_ranks_and_two_engines_learn_as_one(small: Small, tmp_path: Path) -> None:
    arguments = ["pathor1.cli", "rl", str(small.recipe), "--set", f"runs_dir={tmp_path}"]
    arguments += ["--set", "cluster.accelerators_per_node=2", "--set", "rl.steps=2"]
    with running(arguments, tmp_path / "log") as command:
        assert command.finish(STARTED + 200) == 0, command.output()[-3000:]
    steps = metrics(tmp_path / "run")
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["rollout/probability_difference_max"] < 1e-3 for step in steps)
    assert all(step["groups/trained"] == 8 for step in steps)
    assert json.loads((tmp_path / "run/checkpoints/step-000002/manifest.json").read_text())["ranks"] == 2
