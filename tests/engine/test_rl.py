"""GRPO with verl's trainer and vLLM's engine: real runs of a few steps."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from processes import running, wait_until
from safetensors.numpy import load_file
from small import Small
from stores import Store, s3_store

from pathor1 import cli, places
from pathor1.prompts import messages
from pathor1.rl.copies import CheckpointStore
from pathor1.samples import read, write

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
def held_out(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 questions, and one that is too long to be asked."""
    path = tmp_path_factory.mktemp("held_out") / "test.parquet"
    samples = list(islice(read(small.train), 24))
    write([*samples, replace(samples[0], id="too long", question="why " * 200)], path)
    return path


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[socket.socket]:
    """Where another run on this machine, of a Ray of its own, waits for its engine: as verl names it."""
    path = Path("/tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.bind(str(path))
        waiting.listen()
        waiting.setblocking(False)
        yield waiting
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def uninterrupted(
    small: Small, held_out: Path, elsewhere: socket.socket, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole run of four steps, evaluated every other step, beside another run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    arguments = ["pathor1.cli", "rl", str(small.recipe), "--set", f"runs_dir={folder}"]
    arguments += ["--set", "rl.evaluate_every=2", "--set", f"data.test=['{held_out}']"]
    with running(arguments, folder / "log") as command:
        assert command.finish(STARTED + 200) == 0, command.output()[-3000:]
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")
    return folder / "run"


def manifest(run: Path, step: int) -> dict[str, Any]:
    return json.loads((run / f"checkpoints/step-{step:06d}/manifest.json").read_text())


def test_a_checkpoint_has_a_checksum_of_every_file_and_a_score(uninterrupted: Path) -> None:
    accuracy = [step["reward/accuracy"] for step in metrics(uninterrupted)]
    for step in (2, 4):
        path, found = uninterrupted / f"checkpoints/step-{step:06d}", manifest(uninterrupted, step)
        files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        assert found["files"].keys() == files - {"manifest.json"}
        assert "actor/optim_world_size_1_rank_0.pt" in found["files"]
        for name, file in found["files"].items():
            content = (path / name).read_bytes()
            assert file == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        mean = pytest.approx(sum(accuracy[step - 2 : step]) / 2)
        assert found["score"] == {"metric": "reward/accuracy", "mean": mean, "steps": 2}


def test_another_run_on_the_machine_keeps_its_weights_to_itself(uninterrupted: Path, elsewhere: socket.socket) -> None:
    assert len(metrics(uninterrupted)) == 4
    with pytest.raises(BlockingIOError):  # nobody has come to fetch its weights
        elsewhere.accept()
    with socket.socket(socket.AF_UNIX) as engine:
        engine.connect(elsewhere.getsockname())
        elsewhere.accept()[0].close()  # it is still there for its own


def test_what_is_exported_answers_as_the_checkpoint_does(uninterrupted: Path, small: Small, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

    assert cli.main(["export", str(uninterrupted), "--to", str(tmp_path / "exported")]) == 0
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "exported", attn_implementation="sdpa")
    # What the actor's rank wrote for itself, in the model that the run began with.
    actor = AutoModelForImageTextToText.from_pretrained(small.model, attn_implementation="sdpa")
    file = uninterrupted / "checkpoints/step-000004/actor/model_world_size_1_rank_0.pt"
    tensors = torch.load(file, weights_only=True)
    actor.load_state_dict({name: tensor.to_local() for name, tensor in tensors.items()})
    processor = AutoProcessor.from_pretrained(tmp_path / "exported")
    sample = next(iter(read(small.train)))
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}],
        add_generation_prompt=True,
    )
    asked = processor(text=[text], images=[Image.open(io.BytesIO(sample.images[0]))], return_tensors="pt")
    with torch.no_grad():
        logits, expected = exported(**asked).logits, actor(**asked).logits
    assert logits.dtype == torch.float32
    assert logits.std() > 0.1
    assert torch.equal(logits, expected)
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {path.name for path in small.model.iterdir()}
    ends = [GenerationConfig.from_pretrained(folder).eos_token_id for folder in (small.model, tmp_path / "exported")]
    assert ends[0] == ends[1]


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


def test_held_out_questions_are_answered_greedily_by_the_weights_of_the_step(
    uninterrupted: Path, held_out: Path
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    samples = {sample.id: sample for sample in read(held_out)}
    for step in metrics(uninterrupted):
        assert ("evaluation/accuracy" in step) == (step["step"] in (2, 4))
    for step in (2, 4):
        rows = pq.read_table(uninterrupted / f"eval/steps/step-{step:06d}.parquet").to_pylist()
        assert [row["id"] for row in rows] == list(samples)
        *answered, failed = rows
        assert {(row["policy_version"], row["dropped"], row["advantage"]) for row in answered} == {(step, None, None)}
        assert (failed["dropped"], failed["accuracy"], failed["text"]) == ("failed", 0.0, "")
        assert "tokens and data.max_prompt_tokens is 96" in failed["reason"]
        values = metrics(uninterrupted)[step - 1]
        assert values["evaluation/questions"] == 25
        assert values["evaluation/failed"] == 1
        assert values["evaluation/accuracy"] == pytest.approx(sum(row["accuracy"] for row in rows) / 25)
        assert values["evaluation/accuracy_low"] <= values["evaluation/accuracy"] < values["evaluation/accuracy_high"]
        folder = uninterrupted / f"checkpoints/step-{step:06d}/huggingface"
        model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa")
        processor = AutoProcessor.from_pretrained(folder)
        pictures = [model.config.image_token_id, model.config.video_token_id]  # vLLM never says these
        for row in answered[:4]:
            sample = samples[row["id"]]
            text = processor.apply_chat_template(messages(sample, "none"), add_generation_prompt=True)
            asked = processor(text=[text], images=[Image.open(io.BytesIO(sample.images[0]))], return_tensors="pt")
            said = model.generate(**asked, do_sample=False, max_new_tokens=48, suppress_tokens=pictures)
            answer = said[0, asked["input_ids"].shape[1] :]
            assert processor.tokenizer.decode(answer, skip_special_tokens=True) == row["text"]
    assert "<strong>Held-out questions</strong>" in (uninterrupted / "report.html").read_text(encoding="utf-8")
    assert manifest(uninterrupted, 2)["evaluations"] == manifest(uninterrupted, 4)["evaluations"][:1]
    assert [each["step"] for each in manifest(uninterrupted, 4)["evaluations"]] == [2, 4]


def test_no_question_comes_twice_in_an_epoch(uninterrupted: Path) -> None:
    seen = [group for step in (1, 2, 3, 4) for group in groups(uninterrupted, step)]
    assert len(seen) == len(set(seen)) == 4 * 8
    assert {group for group, _ in seen} == {str(number) for number in range(32)}
    assert len({sample for _, sample in seen}) == 32


@pytest.fixture
def store() -> Iterator[Store]:
    """A bucket that this process, and those that it starts, have the environment for."""
    with s3_store("lab") as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        places._store.cache_clear()
        yield store
    places._store.cache_clear()


def test_two_ranks_are_killed_and_one_goes_on_from_the_store(
    small: Small, uninterrupted: Path, held_out: Path, store: Store, tmp_path: Path
) -> None:
    """The disk is lost too: what goes on has the run's step, its weights and its questions from the store alone.

    The model never gets a held-out question right: at step 4, three evaluations were no better than the first.
    """
    run, copies = tmp_path / "run", CheckpointStore(store.uri("runs"), "run")
    arguments = ["pathor1.cli", "rl", str(small.recipe), "--set", f"runs_dir={tmp_path}"]
    arguments += ["--set", "cluster.accelerators_per_node=2", "--set", f"rl.checkpoint_store={store.uri('runs')}"]
    arguments += ["--set", "rl.evaluate_every=1", "--set", f"data.test=['{held_out}']"]
    arguments += ["--set", "rl.best_by=evaluation/accuracy", "--set", "rl.early_stop_patience=3"]
    arguments += ["--set", "rl.steps=9"]
    with running(arguments, tmp_path / "log") as killed:
        killed.wait_for("step 3/9", STARTED)
        killed.kill()
        assert sorted(copies.scores()) == [2]
        two = metrics(run)
        assert [step["step"] for step in two] == [1, 2, 3]
        assert all(step["groups/trained"] == 8 for step in two)
        assert manifest(run, 2)["ranks"] == 2
        lost = (run / "checkpoints").rename(tmp_path / "lost")
        arguments = ["pathor1.cli", "rl", "--resume", str(run), "--set", "cluster.accelerators_per_node=1"]
        with running(arguments, tmp_path / "log2") as command:
            assert command.finish(STARTED + 200) == 0, command.output()[-3000:]
            assert "run: takes the checkpoint of step 2 from s3://lab/runs/run" in command.output()
            assert "step-000002: written by 2 ranks, loaded by 1" in command.output()
            assert "step 4: stops early (rl.early_stop_patience)" in command.output()
            assert "of 25 held-out questions right" in command.output()
            assert "step 2: " not in command.output(), "it was evaluated already"
        # Ray's two agents look five times before they believe that their node is gone, and then tell it so in vain.
        wait_until(lambda: not killed.left_behind(), 180, "no process left behind by a killed run")
    for file in (file for file in (lost / "step-000002").rglob("*") if file.is_file()):
        assert (run / "checkpoints" / file.relative_to(lost)).read_bytes() == file.read_bytes()
    assert manifest(run, 4)["ranks"] == 1
    assert [(each["step"], each["accuracy"]) for each in manifest(run, 4)["evaluations"]] == [
        (step, 0.0) for step in (1, 2, 3, 4)
    ]
    assert manifest(run, 4)["score"] == {"metric": "evaluation/accuracy", "mean": 0.0, "steps": 1}
    with running(["pathor1.cli", "rl", "--resume", str(run)], tmp_path / "log3") as command:
        assert command.finish(60) == 2
        assert (
            f"{run}: has stopped early, behind step 4; for more, --set rl.early_stop_patience=NUMBER"
            in command.output()
        )
    assert sorted(copies.scores()) == [2, 4], "the run has waited for the last copy"
    steps = metrics(run)
    assert [step["step"] for step in steps] == [1, 2, 3, 4], "step 3 was run again, not counted twice"
    assert all(step["checkpoints/copies_failed"] == 0 for step in steps)
    # vLLM is given the checkpoint's weights, not those that the recipe starts from.
    assert all(step["rollout/probability_difference_max"] < 1e-3 for step in steps)
    # Neither the number of ranks nor the kill has changed what is asked.
    for step in (1, 2, 3, 4):
        assert groups(run, step) == groups(uninterrupted, step)
    before, after = weights(run, 2), weights(run, 4)
    assert any(not np.array_equal(before[name], after[name]) for name in before)
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
