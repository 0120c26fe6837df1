"""Runs of supervised stages on the report page and side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_report import make_run as make_rl_run
from test_report import text_of

from pathor1.recipe import to_toml
from pathor1.report import comparison, numbers, page
from pathor1.runs import RunFolder
from pathor1.stage import load

RECIPE = """
name = "NAME"
[model]
path = "m"
[data]
train = ["t.parquet"]
[STAGE]
steps = 40
batch_size = 16
max_tokens = 512
"""


def make_run(folder: Path, stage: str, *overrides: str, steps: int = 12) -> RunFolder:
    """A stage's run: its loss falls from 4 by 0.1 a step, that of its last source is 1 above the first one's."""
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.recipe.write_text(RECIPE.replace("NAME", folder.name).replace("STAGE", stage), encoding="utf-8")
    recipe = load(run.recipe, [f"runs_dir={folder.parent}", *overrides])
    run.recipe.write_text(to_toml(recipe), encoding="utf-8")
    rows = [
        {"step": step, "loss": 4 - step / 10, "loss/atlas": 3 - step / 10, "loss/book": 3.5 - step / 10}
        | {"loss/clinic": 4 - step / 10, "loss/dataset": 4.5 - step / 10, "tokens/learned": 100.0, "seconds/step": 2.0}
        for step in range(1, steps + 1)
    ]
    run.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return run


def test_the_page_of_a_stage_says_what_it_trained_and_has_its_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "patho-cpt", "cpt", 'cpt.freeze=["vision_tower","projector"]', "cpt.lora.rank=8")
    found = page.collect(run)
    assert [figure.title for figure in found.figures] == [
        "Loss", "Time", "Loss by source, 1 of 2", "Loss by source, 2 of 2"
    ]  # fmt: skip
    legends = {figure.title: figure.legend for figure in found.figures}
    assert legends["Loss"] == (("c0", "loss", "2.8"),)
    assert [name for _, name, _ in legends["Loss by source, 1 of 2"]] == ["atlas", "book", "clinic"]
    text = text_of(page.write(run.path))
    assert "CPT on m : 12 of 40 steps done." in text
    assert "16 samples of at most 512 tokens. Frozen: vision tower, projector; adapters of rank 8. Seed 0." in text
    assert "Answers" not in text, "a stage has no rollouts"
    run.metrics.unlink()
    text = text_of(page.write(run.path))
    assert "0 of 40 steps done." in text
    assert "No step has been done yet" in text


def test_stages_stand_beside_each_other_and_beside_rl(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", "sft")
    two = make_run(tmp_path / "two", "cpt", "cpt.learning_rate=2e-5", steps=20)
    found = comparison.compare([numbers.read(run) for run in (one, two)])
    assert found.names == ("one (SFT)", "two (CPT)")
    training = {name: tuple(cell.text for cell in cells) for name, cells in dict(found.tables)["Training"]}
    assert training == {
        "steps": ("12", "20"),
        "loss of the last ten steps, mean": ("3.25", "2.45"),
        "tokens that were learned": ("1,200", "2,000"),
        "seconds of all steps": ("24", "40"),
    }
    assert [figure.title for figure in found.figures] == ["Loss", "Time"]
    recipe = {name: tuple(cell.text for cell in cells) for name, cells in dict(found.tables)["Recipe"]}
    assert (recipe["sft.learning_rate"], recipe["cpt.learning_rate"]) == (("1e-05", "not set"), ("not set", "2e-05"))
    rl = make_rl_run(tmp_path / "rl")
    (rl / "metrics.jsonl").write_text('{"step": 1, "reward/accuracy": 0.5}\n', encoding="utf-8")
    found = comparison.compare([numbers.read(two), numbers.read(RunFolder(rl))])
    assert found.names == ("two (CPT)", "rl (GRPO)")
    loss = dict(dict(found.tables)["Training"])["loss of the last ten steps, mean"]
    assert [cell.text for cell in loss] == ["2.45", ""]


@pytest.mark.parametrize("stage", ["cpt", "sft"])
def test_a_stage_of_one_source_has_no_curves_by_source(tmp_path: Path, stage: str) -> None:
    run = make_run(tmp_path / "run", stage)
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    assert [figure.title for figure in page.collect(run).figures] == ["Loss"]
