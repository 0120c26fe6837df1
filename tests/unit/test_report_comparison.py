"""Two runs side by side on the report page: which numbers stand beside which, and what is wrong with the other one."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pathor1.errors import RunError
from pathor1.recipe import load, to_toml
from pathor1.report import comparison, page
from pathor1.report.comparison import Comparison
from pathor1.rl.algorithms import spell_out
from pathor1.runs import RunFolder

RECIPES = Path(__file__).parents[2] / "ray_jobs" / "recipes"


def make_run(folder: Path, algorithm: str, steps: Sequence[dict[str, float]], summary: dict[str, Any]) -> RunFolder:
    own = [f"name={folder.name}", f"runs_dir={folder.parent}", f'data.train=["{folder}/data/train.parquet"]']
    recipe = spell_out(load(RECIPES / "demo_grpo.toml", [*own, f"rl.algorithm={algorithm}"]))
    folder.mkdir()
    run = RunFolder(folder)
    run.recipe.write_text(to_toml(recipe), encoding="utf-8")
    rows = ({"step": number, **values} for number, values in enumerate(steps, start=1))
    run.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    run.summary.write_text(json.dumps(summary), encoding="utf-8")
    return run


def step(**values: float) -> dict[str, float]:
    """`groups_asked=32` -> {"groups/asked": 32}."""
    return {name.replace("_", "/", 1): value for name, value in values.items()}


def accuracy(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 400}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    """DAPO with three steps, one of them skipped, and GRPO with two."""
    dapo = [
        step(groups_asked=30, groups_trained=16, groups_informative=18, dropped_all_correct=12, tokens_generated=2400,
             tokens_trained=1280, reward_accuracy=0.5, seconds_step=6.5),
        step(groups_asked=64, groups_trained=0, groups_informative=0, dropped_all_correct=62, dropped_stale=2,
             tokens_generated=5000, tokens_trained=0, reward_accuracy=0.9, seconds_step=8.0),
        step(groups_asked=20, groups_trained=16, groups_informative=16, dropped_all_correct=4, tokens_generated=1600,
             tokens_trained=1220, reward_accuracy=0.75, seconds_step=5.5),
    ]  # fmt: skip
    for values, tokens in ((dapo[0], 10.0), (dapo[2], 9.0)):
        values["response_tokens/mean"] = tokens
    grpo = [{"groups/asked": 16.0, "groups/trained": 16.0, "reward/accuracy": 0.5, "seconds/step": 4.0}] * 2
    results = {
        "accuracy": {"warm_start": {"rendered": accuracy(0.5)}, "final": {"rendered": accuracy(0.825)}},
        "format": {"final": {"rendered": {"value": 1.0}}},
        "weights": "0123456789abcdef",
    }
    of_grpo = {**results, "accuracy": {"final": {"rendered": accuracy(0.785)}}, "seconds": {"rl": 280.0}}
    return (
        make_run(tmp_path / "demo-dapo", "dapo", dapo, {**results, "seconds": {"rl": 312.4}}),
        make_run(tmp_path / "demo", "grpo", grpo, of_grpo),
    )


def compared(run: RunFolder, other: RunFolder) -> Comparison:
    return comparison.compare(comparison.read(run), comparison.read(other))


def texts(found: Comparison, caption: str) -> dict[str, tuple[str, ...]]:
    return {name: tuple(cell.text for cell in cells) for name, cells in dict(found.tables)[caption]}


def test_held_out_shares_stand_beside_each_other(runs: tuple[RunFolder, RunFolder]) -> None:
    found = compared(*runs)
    assert found.names == ("demo-dapo (DAPO)", "demo (GRPO)")
    assert texts(found, "Held-out questions") == {
        "right, greedy: rendered, warm start": ("50.0 %", ""),
        "right, greedy: rendered, final": ("82.5 %", "78.5 %"),
        "right format: rendered, final": ("100.0 %", "100.0 %"),
    }
    final = dict(dict(found.tables)["Held-out questions"])["right, greedy: rendered, final"]
    assert [cell.details for cell in final] == [("77.5 to 87.5 %", "n 400"), ("73.5 to 83.5 %", "n 400")]


def test_groups_tokens_and_time_are_of_all_steps(runs: tuple[RunFolder, RunFolder]) -> None:
    assert texts(compared(*runs), "Training") == {
        "steps": ("3", "2"),
        "groups asked for": ("114", "32"),
        "groups with right and wrong answers": ("34", ""),
        "groups trained on": ("32", "32"),
        "groups dropped: all correct": ("78", ""),
        "groups dropped: stale": ("2", ""),
        "generated tokens that were trained on": ("27.8 %", ""),  # 2,500 of 9,000
        "tokens of an answer that was trained on, mean": ("9.5", ""),
        "seconds of all steps": ("20", "8"),
        "seconds of RL, with its start and end": ("312", "280"),
    }


def test_of_the_recipes_only_what_differs_is_shown_and_not_where_the_runs_lie(
    runs: tuple[RunFolder, RunFolder],
) -> None:
    assert texts(compared(*runs), "Recipe") == {
        "rl.algorithm": ("dapo", "grpo"),
        "rl.clip_high": ("0.28", "0.2"),
        "rl.loss_aggregation": ("token-mean", "sequence-mean"),
        "rl.dynamic_sampling": ("True", "False"),
        "rl.reward.length": ("1.0", "0.0"),
    }


def test_a_figure_has_a_line_for_each_run(runs: tuple[RunFolder, RunFolder]) -> None:
    (figure,) = compared(*runs).figures  # neither has the reward's mean or the entropy
    assert figure.legend == (("c0", "demo-dapo (DAPO)", "0.75"), ("c1", "demo (GRPO)", "0.5"))
    paths = [path for path in ET.fromstring(str(figure.svg)).iter("path") if "line" in path.attrib["class"]]
    # Steps 1 to 3 lie in 46 ... 388, accuracies 0 to 1 in 184 ... 22: the second run ends at the second step.
    assert [path.attrib["d"] for path in paths] == ["M46.0 103.0L217.0 38.2L388.0 62.5", "M46.0 103.0L217.0 103.0"]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("0123456789abcdef", "Both began with the same weights (SHA-256 0123456789ab…)."),
        ("f" * 16, "They began with different weights."),
        (None, "Whether both began with the same weights was not recorded."),
    ],
)
def test_the_page_says_whether_both_began_with_the_same_weights(
    runs: tuple[RunFolder, RunFolder], weights: str | None, says: str
) -> None:
    run, other = runs
    other.summary.write_text(json.dumps({"weights": weights}))
    content = page.write(run.path, against=other.path).read_text(encoding="utf-8")
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", content)).split())
    assert f"demo-dapo (DAPO) against demo (GRPO) {says}" in text
    assert "right, greedy: rendered, final 82.5 % 77.5 to 87.5 % n 400 right format" in text
    assert "groups asked for 114 32" in text
    assert "against" not in page.write(run.path).read_text(encoding="utf-8")
    assert not other.report.exists()


def test_runs_of_one_name_are_called_by_their_folders(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = make_run(tmp_path / "elsewhere" / "demo", "grpo", [], {})
    assert compared(runs[1], other).names == (str(tmp_path / "demo"), str(tmp_path / "elsewhere" / "demo"))


def test_another_one_that_is_no_run_is_an_error_of_one_line_and_leaves_the_page_as_it_was(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path
) -> None:
    run, other = runs
    before = page.write(run.path).read_bytes()
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(RunError) as error:
            page.write(run.path, against=folder)
        assert str(error.value).startswith(f"{folder}: not the folder of a run, it has no recipe.toml")
    with pytest.raises(RunError, match="the run itself; give --against another one"):
        page.write(run.path, against=tmp_path / "demo" / ".." / "demo-dapo")
    other.metrics.write_text('nonsense\n{"step": 2}\n')
    with pytest.raises(RunError, match=re.escape(f"{other.metrics}:1: not a JSON object")):
        page.write(run.path, against=other.path)
    assert run.report.read_bytes() == before
