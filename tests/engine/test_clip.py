"""PathoCLIP on Ray Train: two stages that learn, stop and go on; evaluated, as shards and back, without leaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from clip_models import write_config
from processes import running, wait_until

from pathor1 import checkpoints
from pathor1.cli import main
from pathor1.clip import shards
from pathor1.data.drawing import CLASSES
from pathor1.data.rendered import render
from pathor1.data.row_groups import row_groups
from pathor1.samples import read, write
from pathor1.tracking.meanings import OF_A_STAGE, OF_CLIP, entry

TIME = 500  # seconds that a run may take on two busy cores
STEPS = (30, 90)
RECIPE = """
name = "clip"
[model]
architecture = "MODEL"
dtype = "float32"
[data]
workers = 1
[stage_1]
train = ["HISTOPATHOLOGY"]
steps = 30
batch_size = 64
learning_rate = 1e-3
warmup_steps = 10
[stage_2]
train = ["TRAIN"]
steps = 90
batch_size = 64
learning_rate = 1e-3
warmup_steps = 10
save_every = 40
[cluster]
accelerators_per_node = 1
"""
PROMPTS = ["CLASSNAME.", "A picture of CLASSNAME.", "CLASSNAME is seen."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures with captions, of which stage 1 has one subfield, a model, prompts and a recipe."""
    folder = tmp_path_factory.mktemp("clip")
    drawn = render(folder, seed=1, counts={"train": 1800, "test": 480}, difficulty=0.2, captions=True)
    first = (sample for sample in read(drawn["train"]) if sample.subfield == "histopathology")
    write(first, folder / "histopathology.parquet")
    prompts = {"0": {"classnames": {name: [name] for name in CLASSES}, "templates": PROMPTS}}
    (folder / "prompts.json").write_text(json.dumps(prompts))
    text = RECIPE.replace("MODEL", str(write_config(folder)))
    text = text.replace("HISTOPATHOLOGY", str(folder / "histopathology.parquet"))
    (folder / "recipe.toml").write_text(text.replace("TRAIN", str(drawn["train"])))
    return folder


def train(folder, out, *changes):
    settings = [f"runs_dir={out}", *changes]
    return ["pathor1.cli", "clip", "train", str(folder / "recipe.toml"), *(p for s in settings for p in ("--set", s))]


def metrics(out):
    return [json.loads(line) for line in (out / "clip/metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder):
    """The folder of a run whose worker was killed in its second stage, that was stopped there, and has gone on."""
    out = folder / "runs"
    rows = out / "clip/metrics.jsonl"

    def reaches(command, step):
        wait_until(
            lambda: command.process.poll() is not None or (rows.exists() and rows.read_text().count("\n") >= step),
            TIME,
            f"step {step}",
        )
        assert command.process.poll() is None, command.output()[-3000:]

    with running(train(folder, out), folder / "log") as command:
        reaches(command, STEPS[0] + 4)
        (worker,) = [process for process, line in command.processes() if "RayTrainWorker" in line]
        os.kill(worker, signal.SIGKILL)
        undisturbed = metrics(out)
        reaches(command, STEPS[0] + 12)
        # Stage 2 has begun again behind the checkpoint of stage 1, with the same pairs.
        again = metrics(out)[: len(undisturbed)]
        assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in undisturbed], abs=1e-5)
        assert again[-1]["seconds/step"] != undisturbed[-1]["seconds/step"]
        command.process.send_signal(signal.SIGTERM)
        assert command.finish(TIME) == 128 + signal.SIGTERM, command.output()[-3000:]
        assert "stopped; a checkpoint of step" in command.output()
        wait_until(lambda: not command.left_behind(), 30, "no process left behind")
    before = metrics(out)
    stopped = checkpoints.latest(out / "clip/checkpoints")
    assert checkpoints.step_of(stopped) == before[-1]["step"] < sum(STEPS)
    with running(train(folder, out), folder / "log2") as command:
        assert command.finish(TIME) == 0, command.output()[-3000:]
    assert metrics(out)[: len(before)] == before
    return out / "clip"


def evaluated(folder, trained, what, capsys, **sets):
    recipe = {
        "name": "evaluation",
        "runs_dir": str(folder / "runs"),
        "models": {"stage 1": str(trained / f"checkpoints/step-{STEPS[0]:06d}"), "final": str(trained)},
        what.replace("-", "_"): {"rendered": sets},
    }
    import tomli_w

    (folder / "evaluation.toml").write_text(tomli_w.dumps(recipe))
    assert main(["clip", what, str(folder / "evaluation.toml")]) == 0
    told = capsys.readouterr().out
    found = json.loads((folder / f"runs/evaluation/eval/{what.replace('-', '_')}.json").read_text())["results"]
    return {name: each["rendered"] for name, each in found.items()}, told


def test_both_stages_have_run_and_the_loss_falls(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, sum(STEPS) + 1))
    assert [row["stage"] for row in rows] == [1.0] * STEPS[0] + [2.0] * STEPS[1]
    # Each stage has a schedule of its own.
    assert rows[STEPS[0] - 1]["learning_rate"] == pytest.approx(0.0, abs=1e-9)
    assert rows[STEPS[0] + 9]["learning_rate"] == pytest.approx(1e-3)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert {entry(name) for row in rows for name in row} <= {*OF_A_STAGE, *OF_CLIP}
    steps = [checkpoints.step_of(path) for path in checkpoints.complete(trained / "checkpoints")]
    assert STEPS[0] in steps, "the model of stage 1 stays"
    assert steps[-1] == sum(STEPS)


def test_what_was_held_out_is_known_without_an_example_and_stage_2_knows_more(folder, trained, capsys):
    test = str(folder / "test.parquet")
    found, told = evaluated(folder, trained, "zero-shot", capsys, data=[test], prompts=str(folder / "prompts.json"))
    chance = 1 / len(CLASSES)
    assert found["final"]["chance"] == pytest.approx(chance)
    assert found["final"]["accuracy"]["low"] > 4 * chance, found["final"]["accuracy"]
    assert found["final"]["accuracy"]["low"] > found["stage 1"]["accuracy"]["high"] + 0.1
    assert sum(map(sum, found["final"]["confusion"])) == 480
    assert "final" in told
    assert (folder / "runs/evaluation/report.html").is_file()
    settings = ["name=spread", "encoders=2", f"models={{final={json.dumps(str(trained))}}}"]
    options = [part for setting in settings for part in ("--set", setting)]
    assert main(["clip", "zero-shot", str(folder / "evaluation.toml"), *options]) == 0
    spread = json.loads((folder / "runs/spread/eval/zero_shot.json").read_text())["results"]["final"]["rendered"]
    assert spread["confusion"] == found["final"]["confusion"], "two models side by side say what one says"


def test_captions_are_found_for_pictures_and_pictures_for_captions(folder, trained, capsys):
    found, _ = evaluated(folder, trained, "retrieval", capsys, data=[str(folder / "test.parquet")])
    for direction in ("image_to_text", "text_to_image"):
        recalls = {name: each[direction]["at"]["1"] for name, each in found.items()}
        # A caption is one of four wordings of a class: by chance one in 48 is the same, or nearly.
        assert recalls["final"]["low"] > 0.08
        assert found["final"][direction]["mean"] > found["stage 1"][direction]["mean"] + 0.1
    for row in found["final"]["gallery"]:
        texts = [each["caption"] for each in row["found"]]
        assert len(texts) == len(set(texts))
        assert {each["caption"] for each in row["found"] if each["right"]} <= {row["caption"]}
    page = (folder / "runs/evaluation/report.html").read_text()
    assert page.count("<article>") == 2 * 24
    assert 'class="verdict right"' in page


def test_a_linear_probe_on_few_pictures(folder, trained, capsys):
    test = str(folder / "test.parquet")
    found, _ = evaluated(folder, trained, "probe", capsys, train=[test], shots=[2, 8], seeds=3)
    fits = found["final"]["fits"]
    assert [(fit["shots"], fit["seed"]) for fit in fits] == [(n, seed) for n in (2, 8) for seed in range(3)]
    assert min(fit["accuracy"] for fit in fits if fit["shots"] == 8) > 3 / len(CLASSES)
    assert "<svg" in (folder / "runs/evaluation/report.html").read_text()


def test_another_number_of_workers_goes_on_and_another_batch_does_not(folder, trained, capsys):
    out = folder / "two"
    shutil.copytree(trained, out / "clip")
    for path in checkpoints.complete(out / "clip/checkpoints")[1:]:
        shutil.rmtree(path)
    settings = ["cluster.accelerators_per_node=2", "stage_2.passes=2", "stage_2.steps=4", "stage_2.warmup_steps=1"]
    with running(train(folder, out, *settings), folder / "log3") as command:
        assert command.finish(TIME) == 0, command.output()[-3000:]
    assert [row["step"] for row in metrics(out)] == list(range(1, STEPS[0] + 5))
    assert "behind step 30" in command.output()
    arguments = train(folder, out, "stage_1.batch_size=32")[1:]
    assert main(arguments) == 2
    assert "with stage_1.batch_size = 64, not 32" in capsys.readouterr().err


def test_shards_and_leaks(folder, capsys):
    test, out = folder / "test.parquet", folder / "shards"
    # The first was written by a call that was interrupted.
    groups = row_groups([str(test)])
    shards._go_on(out, shards._made_of(groups, 200, 0, frozenset()))
    list(shards.WriteShard(path=out / "00000.tar", parts=next(shards._plan(groups, 200)))())
    before = (out / "00000.tar").stat().st_mtime_ns
    assert main(["clip", "shards", str(test), "--out", str(out), "--pairs", "200"]) == 0
    assert (out / "00000.tar").stat().st_mtime_ns == before
    assert not (out / ".unfinished").exists()
    assert json.loads((out / "sizes.json").read_text()) == {"00000.tar": 200, "00001.tar": 200, "00002.tar": 80}
    assert main(["data", "import", "webdataset", str(out), "--out", str(folder / "back")]) == 0
    (back,) = (folder / "back/train").glob("*.parquet")
    assert [(one.id, one.answer, one.images) for one in read(back)] == [
        (one.id, one.answer, one.images) for one in read(test)
    ]
    capsys.readouterr()
    leaked = [replace(sample, id=f"leak-{sample.id}") for sample in list(read(test))[:3]]
    write([*list(read(folder / "train.parquet"))[:200], *leaked], folder / "mixed.parquet")
    listed = folder / "leaks.jsonl"
    assert main(["clip", "leaks", str(folder / "mixed.parquet"), "--against", str(test), "--out", str(listed)]) == 0
    found = [json.loads(line) for line in listed.read_text().splitlines()]
    exact = {each["id"]: each["evaluation_id"] for each in found if each["bits"] is None}
    assert exact == {sample.id: sample.id.removeprefix("leak-") for sample in leaked}
    assert "3 by the same pixels" in capsys.readouterr().out
    assert main(["clip", "shards", str(test), "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_too_many_pictures_that_cannot_be_read_end_the_run(folder, tmp_path):
    samples = list(read(folder / "train.parquet"))[:300]
    bad = [replace(sample, id=f"bad-{n}", images=(b"broken",)) for n, sample in enumerate(samples[:40])]
    write([*samples, *bad], tmp_path / "bad.parquet")
    changes = [f"stage_1.train={json.dumps([str(tmp_path / 'bad.parquet')])}", "stage_1.steps=20"]
    with running(train(folder, tmp_path / "runs", *changes), tmp_path / "log") as command:
        assert command.finish(TIME) == 2, command.output()[-3000:]
    assert "of 340 training samples cannot be used" in command.output().strip().splitlines()[-1]
    rows = (tmp_path / "runs/clip/left_out_stage_1.jsonl").read_text().splitlines()
    assert all(json.loads(row)["id"].startswith("bad-") for row in rows)


def test_what_is_exported_is_loaded_by_open_clip(folder, trained, capsys):
    import open_clip
    import torch

    out = folder / "exported"
    assert main(["export", str(trained), "--to", str(out)]) == 0
    assert "in float32" in capsys.readouterr().out
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    kept, _, _ = open_clip.create_model_and_transforms(
        f"local-dir:{checkpoints.latest(trained / 'checkpoints')}/huggingface"
    )
    assert model.text_projection.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), kept.parameters(), strict=True))


def test_the_report_of_a_run(trained, capsys):
    assert main(["report", str(trained)]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text()
    assert "Stage 2: 90 steps of" in page
    assert "Scale of the similarities" in page
