"""verl's asynchronous modes: a run that begins in one, is killed, and goes on in the other."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from processes import running, wait_until
from small import Small

STARTED = 600  # seconds that a run may take to its first step on two busy cores
STEPS, QUESTIONS, ROLLOUTS = 6, 8, 4
CARRY = 2  # rl.max_carry_steps of these modes
# By chance all answers of a step are equally long and equally wrong, and then nothing is learned from them: which share
# of their characters is distinct differs in every step.
FUNCTION = """
def variety(text, answer, sample):
    return len(set(text)) / max(len(text), 1)
"""
pytestmark = pytest.mark.timeout(1800)


def rows(run: Path, step: int) -> list[dict[str, Any]]:
    return pq.read_table(run / f"ledger/step-{step:06d}.parquet").to_pylist()


@pytest.fixture(scope="module")
def run(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed behind step 3, it goes on behind the checkpoint of step 2, with an engine of its own."""
    folder = tmp_path_factory.mktemp("modes")
    function = folder / "variety.py"
    function.write_text(FUNCTION)
    settings = [f"runs_dir={folder}", f"rl.steps={STEPS}", "rl.mode=colocate_async", "rl.keep_checkpoints=3"]
    settings.append(f"rl.reward.function={function}:variety")
    arguments = [text for setting in settings for text in ("--set", setting)]
    with running(["pathor1.cli", "rl", str(small.recipe), *arguments], folder / "log") as killed:
        killed.wait_for(f"step 3/{STEPS}", STARTED)
        killed.kill()
        arguments = ["--set", "rl.mode=separate_async", "--set", "cluster.rollout_accelerators=1"]
        with running(["pathor1.cli", "rl", "--resume", str(folder / "run"), *arguments], folder / "log2") as command:
            assert command.finish(STARTED + 200) == 0, command.output()[-3000:]
            wait_until(lambda: not command.left_behind(), 30, "no process left behind")
        wait_until(lambda: not killed.left_behind(), 180, "no process left behind by a killed run")
    return folder / "run"


def test_every_question_is_learned_from_once_also_those_that_were_under_way_when_the_run_was_killed(run: Path) -> None:
    written = [row for step in range(1, STEPS + 1) for row in rows(run, step)]
    numbers = {(str(number), rollout) for number in range(STEPS * QUESTIONS) for rollout in range(ROLLOUTS)}
    assert Counter((row["group"], row["rollout"]) for row in written) == Counter(dict.fromkeys(numbers, 1))
    assert all(row["dropped"] is None and row["advantage"] is not None for row in written)
    assert all(sum(row["step"] == step for row in written) == QUESTIONS * ROLLOUTS for step in range(1, STEPS + 1))
    saved = torch.load(run / "checkpoints/step-000002/carried.pt", weights_only=False)
    ahead = set(saved["asked"]) | {group.number for group in saved["groups"]}
    assert len(ahead) == QUESTIONS, "one step's questions are asked ahead"
    assert saved["asked"], "some of them are under way"
    assert ahead <= {int(row["group"]) for row in written if 2 < row["step"] <= 2 + 1 + CARRY}


def test_what_is_told_of_an_answer_is_which_weights_said_it_and_how_old_they_were(run: Path) -> None:
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [values["step"] for values in steps] == list(range(1, STEPS + 1))
    for step, values in enumerate(steps, start=1):
        written = rows(run, step)
        staleness = [step - 1 - row["policy_version"] for row in written]
        assert min(staleness) >= 0
        assert values["staleness/max"] == max(staleness) <= CARRY
        assert values["staleness/mean"] == pytest.approx(sum(staleness) / len(staleness))
        interrupted = [row for row in written if row["last_policy_version"] is not None]
        assert values["staleness/interrupted"] == pytest.approx(len(interrupted) / len(written))
        assert all(row["policy_version"] < row["last_policy_version"] < step for row in interrupted)
        # What a question's answer is said by is no older than the step that asked it.
        assert all(row["asked"] - 1 <= row["policy_version"] for row in written)
    assert max(values["staleness/max"] for values in steps) >= 1, "questions are asked ahead"


def test_what_older_weights_said_is_weighed_for_it(run: Path) -> None:
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for values in steps for value in values.values() if isinstance(value, float))
    for values in steps:
        assert values["actor/gradient_norm"] > 0
        assert 0 < values["carried/importance_weight_mean"] <= values["carried/importance_weight_max"]
        # Weights of the step before move a token's probability by more than rounding does.
        assert (values["carried/importance_weight_max"] > 1.01) == (values["staleness/max"] > 0)
        assert (values["staleness/kl"] > 1e-5) == (values["staleness/max"] > 0)


def test_vllm_serves_the_actors_weights_in_each_mode(run: Path) -> None:
    """At every step, also where all that it learns from was said by other weights, which differ from it by more."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < values["rollout/probability_difference_max"] < 1e-3 for values in steps)
    assert any(values["staleness/mean"] >= 1 for values in steps)
