"""Continued pretraining and fine-tuning as runs: killed, stopped, resumed on other numbers of workers, and chained.

The losses of a stage depend on its recipe alone: a run that nothing happens to says what all others have to find.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import Command, running, wait_until
from safetensors.numpy import load_file
from small import Small

from pathor1 import checkpoints
from pathor1.report import page
from pathor1.samples import Sample, read, write
from pathor1.stage import load

TIME = 400  # seconds that a run may take on two busy cores
STEPS = 60

RECIPE = """
name = "NAME"
runs_dir = "RUNS"

[model]
path = "MODEL"
dtype = "float32"
gradient_checkpointing = false

[data]
train = ["TRAIN"]
system_prompt = "none"
min_pixels = 3136
max_pixels = 3136
workers = 1

[STAGE]
steps = 60
batch_size = 8
learning_rate = 2e-4
warmup_steps = 5
max_tokens = 160
max_tokens_per_pass = 480
save_every = 10
keep_checkpoints = 9

[cluster]
accelerators_per_node = 1
"""


def caption(sample: Sample) -> Sample:
    return replace(
        sample,
        task="caption",
        question="",
        options=None,
        answer=sample.explanation or "",
        explanation=None,
        source=f"book-{sample.id[-1]}",
    )


@pytest.fixture(scope="module")
def runs(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captions, in which runs are made."""
    folder = tmp_path_factory.mktemp("stages")
    write(map(caption, read(small.train)), folder / "captions.parquet")
    return folder


def recipe(runs: Path, small: Small, name: str, *, stage: str = "cpt", model: Path | None = None) -> Path:
    train = runs / "captions.parquet" if stage == "cpt" else small.train
    values = {"NAME": name, "RUNS": runs, "MODEL": model or small.model, "TRAIN": train, "STAGE": stage}
    text = RECIPE
    for word, value in values.items():
        text = text.replace(word, str(value))
    path = runs / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def stage(path: Path, *overrides: str, log: str = "log") -> Iterator[Command]:
    options = [text for override in overrides for text in ("--set", override)]
    arguments = ["pathor1.cli", load(path, overrides).stage, str(path), *options]
    with running(arguments, path.with_suffix(f".{log}")) as command:
        yield command


def losses(runs: Path, name: str) -> list[float]:
    lines = (runs / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def reaches(command: Command, runs: Path, name: str, step: int) -> None:
    """Waits until so many steps are done."""
    metrics = runs / name / "metrics.jsonl"
    wait_until(
        lambda: (
            command.process.poll() is not None
            or (metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") >= step)
        ),
        TIME,
        f"step {step}",
    )
    assert command.process.poll() is None, command.output()[-3000:]


@pytest.fixture(scope="module")
def undisturbed(runs: Path, small: Small) -> Path:
    """A stage on one worker that nothing happens to."""
    with stage(recipe(runs, small, "undisturbed")) as command:
        assert command.finish(TIME) == 0, command.output()[-3000:]
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")
    return runs / "undisturbed"


def test_a_stage_learns_and_says_what(undisturbed: Path, small: Small) -> None:
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    assert rows[0]["loss"] > 4.0
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    # Captions of ten sources: the loss of a step is the mean over its tokens, not over sources.
    sources = {name for row in rows for name in row if name.startswith("loss/")}
    assert len(sources) == 10
    for row in rows:
        parts = [row[name] for name in row if name.startswith("loss/")]
        assert min(parts) <= row["loss"] <= max(parts)
    assert (undisturbed / "tensorboard").is_dir()
    saved = [path.name for path in checkpoints.complete(undisturbed / "checkpoints")]
    assert saved == [f"step-{step:06d}" for step in range(10, STEPS + 1, 10)]
    last = undisturbed / "checkpoints" / saved[-1]
    checkpoints.verify(last, checkpoints.read(last).files)
    before, after = load_file(small.model / "model.safetensors"), load_file(last / "huggingface/model.safetensors")
    assert before.keys() == after.keys()
    assert not [path.name for path in undisturbed.iterdir() if path.name.startswith(".")]


def test_the_same_command_again_has_nothing_to_do(undisturbed: Path, runs: Path) -> None:
    with stage(runs / "undisturbed.toml", log="again") as command:
        assert command.finish(60) == 0, command.output()[-3000:]
    assert f"undisturbed: has done its {STEPS} steps already" in command.output()


def test_what_a_run_keeps_cannot_be_changed(undisturbed: Path, runs: Path, small: Small) -> None:
    other = json.dumps(str(small.model.parent / "other"))
    (small.model.parent / "other").symlink_to(small.model)
    with stage(runs / "undisturbed.toml", "cpt.steps=80", f"model.path={other}", log="other") as command:
        assert command.finish(60) == 2
    assert "a run of this name is there already, with model.path = " in command.output()


def test_captions_that_are_too_long_end_the_stage_in_one_line(runs: Path, small: Small) -> None:
    """It is found in an actor, told to every worker, and no restart would change it."""
    samples = enumerate(read(runs / "captions.parquet"))
    write((replace(one, answer=one.answer * (1 + number % 2)) for number, one in samples), runs / "longer.parquet")
    changes = ("cpt.max_tokens=32", f"data.train={json.dumps([str(runs / 'longer.parquet')])}")
    with stage(recipe(runs, small, "long"), *changes) as command:
        assert command.finish(TIME) == 2, command.output()[-3000:]
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")
    listed = runs / "long/left_out.jsonl"
    assert re.fullmatch(
        rf"pathor1: \d+ of 300 training samples cannot be used, more than data.max_bad_fraction = \S+ allows; {listed} "
        r"lists them, such as (\S+: \d+ tokens, where max_tokens allows 32(; )?){1,3}",
        command.output().strip().splitlines()[-1],
    )
    assert not checkpoints.complete(runs / "long/checkpoints")


def test_a_killed_worker_a_stop_and_fewer_workers_change_nothing(undisturbed: Path, runs: Path, small: Small) -> None:
    """On two workers: one is killed, Ray Train starts again behind a checkpoint; it is stopped; one goes on."""
    path, two = recipe(runs, small, "disturbed"), "cluster.accelerators_per_node=2"
    with stage(path, two) as command:
        reaches(command, runs, "disturbed", 14)
        workers = [process for process, line in command.processes() if "RayTrainWorker" in line]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        reaches(command, runs, "disturbed", 32)
        command.process.send_signal(signal.SIGTERM)
        assert command.finish(TIME) == 128 + signal.SIGTERM, command.output()[-3000:]
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")
    stopped = checkpoints.latest(runs / "disturbed/checkpoints")
    assert stopped is not None
    step = checkpoints.read(stopped).step
    assert f"disturbed: stopped; a checkpoint of step {step} is there, and the same command goes on" in command.output()
    assert step == len(losses(runs, "disturbed")) < STEPS
    assert checkpoints.read(stopped).ranks == 2
    with stage(path, log="resumed") as command:
        assert command.finish(TIME) == 0, command.output()[-3000:]
    assert f"behind step {step}" in command.output()
    assert losses(runs, "disturbed") == pytest.approx(losses(runs, "undisturbed"), abs=1e-5)
    one, other = (
        load_file(runs / f"{name}/checkpoints/step-000060/huggingface/model.safetensors")
        for name in ("undisturbed", "disturbed")
    )
    assert max(float(abs(one[name] - other[name]).max()) for name in one) < 1e-4


def test_a_stage_by_zero_3_goes_on_with_more_workers(undisturbed: Path, runs: Path, small: Small) -> None:
    path = recipe(runs, small, "more")
    with stage(path, "cpt.zero_stage=3") as command:
        reaches(command, runs, "more", 12)
        command.process.send_signal(signal.SIGTERM)
        assert command.finish(TIME) == 128 + signal.SIGTERM, command.output()[-3000:]
    with stage(path, "cpt.zero_stage=3", "cluster.accelerators_per_node=2", log="resumed") as command:
        assert command.finish(TIME) == 0, command.output()[-3000:]
    assert losses(runs, "more") == pytest.approx(losses(runs, "undisturbed"), abs=1e-5)


def test_each_stage_takes_the_folder_of_the_one_before(undisturbed: Path, runs: Path, small: Small) -> None:
    """Continued pretraining, fine-tuning by adapters, RL; the report has what each stage's model is worth."""
    path = recipe(runs, small, "taught", stage="sft", model=undisturbed)
    with stage(path, "sft.steps=20", "sft.lora.rank=8", 'sft.freeze=["vision_tower"]') as command:
        assert command.finish(TIME) == 0, command.output()[-3000:]
    taught = runs / "taught/checkpoints/step-000020/huggingface/model.safetensors"
    before, after = (load_file(each) for each in (checkpoint(undisturbed) / "model.safetensors", taught))
    assert before.keys() == after.keys()
    for name, value in after.items():
        trains = ".merger." in name if "visual." in name else name.endswith("_proj.weight")
        assert np.array_equal(value, before[name]) != trains, name
    settings = [f"runs_dir={runs}", "name=learned", f"model.path={runs / 'taught'}", "rl.steps=1"]
    settings += [f"data.test={json.dumps([str(small.train)])}", "evaluation.samples=16", "evaluation.checks=[]"]
    options = [text for setting in settings for text in ("--set", setting)]
    for what in ("rl", "evaluate"):
        with running(["pathor1.cli", what, str(small.recipe), *options], runs / f"learned.{what}") as command:
            assert command.finish(TIME) == 0, command.output()[-3000:]
    results = json.loads((runs / "learned/eval/held_out.json").read_text(encoding="utf-8"))
    assert list(results["accuracy"]) == ["base", "cpt", "sft", "final"]
    assert all(sets["rendered"]["n"] == 16 for sets in results["accuracy"].values())
    text = page.write(runs / "learned").read_text(encoding="utf-8")
    assert [name for name in ("base", "cpt", "sft", "final") if f'<th scope="row">{name}</th>' in text] == list(
        results["accuracy"]
    )


def checkpoint(run: Path) -> Path:
    """The model of a run's last checkpoint."""
    return Path(checkpoints.model_of(str(run)))
