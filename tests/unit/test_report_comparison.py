"""Runs side by side: which numbers stand beside which, what is chance, and what is wrong with one of them."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from questions import some
from test_report import rollout

from pathor1.errors import RunError
from pathor1.evaluation.intervals import difference
from pathor1.evaluation.run import QUESTIONS
from pathor1.recipe import load, to_toml
from pathor1.report import comparison, numbers
from pathor1.report.comparison import Comparison
from pathor1.rl import ledger
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


def compared(*runs: RunFolder) -> Comparison:
    return comparison.compare([numbers.read(run) for run in runs])


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


def write_answers(run: RunFolder, right: dict[str, float], *, model: str = "final", answer: str = "A") -> None:
    rows = [
        {"model": model, "source": name.split("/")[0], "id": name, "answer": answer, "right": value}
        for name, value in right.items()
    ]
    run.evaluation.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=QUESTIONS), run.evaluation / "held_out.parquet")


def write_record(run: RunFolder, step: int, right: dict[str, float]) -> None:
    rows = [
        replace(rollout(step, some(name, source=name.split("/")[0], answer="A")), accuracy=value)
        for name, value in right.items()
    ]
    ledger.write(run.held_out, step, rows)


def test_runs_are_tested_on_the_questions_that_both_have_answered(runs: tuple[RunFolder, RunFolder]) -> None:
    assert compared(*runs).pairs == ()
    first = {f"ihc/{number}": float(number % 2) for number in range(20)} | {"lab/0": 1.0, "lab/only": 0.0}
    second = {f"ihc/{number}": float(number % 4 > 0) for number in range(20)} | {"lab/0": 0.0}
    write_answers(runs[0], first)
    write_record(runs[1], 2, second)
    assert compared(*runs).pairs == (), "asked in different ways"
    write_answers(runs[1], second, answer="B")
    assert compared(*runs).pairs == (), "of other questions, whatever their ids"
    write_answers(runs[1], second, model="base")
    assert compared(*runs).pairs == ()
    write_answers(runs[1], second)
    overall, ihc, lab = compared(*runs).pairs
    assert [pair.on for pair in (overall, ihc, lab)] == ["overall", "ihc", "lab"]
    assert (overall.run, overall.against) == ("demo (GRPO)", "demo-dapo (DAPO)")
    shared = [name for name in second if name in first]
    assert overall.told == difference([second[name] for name in shared], [first[name] for name in shared])
    assert (overall.told.n, overall.told.gained, overall.told.lost) == (21, 5, 1)
    assert (ihc.told.gained, ihc.told.lost, lab.told.lost) == (5, 0, 1)
    assert str(overall).startswith("demo (GRPO) against demo-dapo (DAPO) on 21 questions: +19.05 points (")
    assert str(overall).endswith("), p = 0.219: not significant (last checkpoint, by pathor1 evaluate)")
    assert str(overall) in comparison.text(compared(*runs))


def test_evaluations_within_the_runs_are_compared_where_there_are_no_others(runs: tuple[RunFolder, RunFolder]) -> None:
    right = {f"ihc/{number}": 0.0 for number in range(12)}
    write_record(runs[0], 1, right | {"ihc/0": 1.0})
    write_record(runs[0], 3, dict.fromkeys(right, 1.0))
    write_record(runs[1], 2, right)
    (pair,) = compared(*runs).pairs
    assert (pair.points, pair.p) == ("-100.00", "p < 0.001")
    assert pair.asked == "step 2, within the run; step 3, within the run"
    for run, low in ((runs[0], 0.25), (runs[1], 0.125)):
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        for row, value in zip(rows[-2:], (0.5, 0.25), strict=True):
            row |= {f"evaluation/{name}": value for name in ("accuracy", "accuracy_high")}
            row |= {"evaluation/accuracy_low": low, "evaluation/questions": 12.0}
        run.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    rows = dict(dict(compared(*runs).tables)["Held-out questions"])
    assert [cell.text for cell in rows["right, greedy: within the run, last"]] == ["25.0 %", "25.0 %"]
    best = rows["right, greedy: within the run, best"]
    assert [cell.details for cell in best] == [
        ("25.0 to 50.0 %", "n 12", "step 2"), ("12.5 to 50.0 %", "n 12", "step 1")
    ]  # fmt: skip
    figure = next(figure for figure in compared(*runs).figures if figure.title == "Held-out questions")
    assert [last for _, _, last in figure.legend] == ["0.25 (0.25 to 0.25)", "0.25 (0.125 to 0.25)"]


def test_three_runs_have_a_column_each_and_their_own_colours(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    third = make_run(tmp_path / "third", "grpo", [{"reward/accuracy": 0.25, "actor/entropy": 1.5}], {})
    found = compared(*runs, third)
    assert found.names == ("demo-dapo (DAPO)", "demo (GRPO)", "third (GRPO)")
    assert texts(found, "Training")["steps"] == ("3", "2", "1")
    assert texts(found, "Recipe")["rl.clip_high"] == ("0.28", "0.2", "0.2")
    legends = {figure.title: figure.legend for figure in found.figures}
    assert legends["Entropy"] == (("c2", "third (GRPO)", "1.5"),)
    assert [name for name, _, _ in legends["Right answers"]] == ["c0", "c1", "c2"]
    for run in (*runs, third):
        write_answers(run, {"ihc/0": 1.0, "ihc/1": 0.0})
    assert [(pair.run[:5], pair.against[:5]) for pair in compared(*runs, third).pairs] == [
        ("demo ", "demo-"), ("third", "demo-"), ("third", "demo ")
    ]  # fmt: skip
    with pytest.raises(RunError, match="9 runs to compare; give 2 to 8"):
        compared(*[third] * 9)
    with pytest.raises(RunError, match="1 runs to compare; give 2 to 8"):
        compared(third)


def test_a_figure_has_a_line_for_each_run(runs: tuple[RunFolder, RunFolder]) -> None:
    # Neither has the reward's mean or the entropy.
    figure, *_ = figures = compared(*runs).figures
    assert [figure.title for figure in figures] == ["Right answers", "Length of answers", "Time"]
    assert figure.legend == (("c0", "demo-dapo (DAPO)", "0.75"), ("c1", "demo (GRPO)", "0.5"))
    paths = [path for path in ET.fromstring(str(figure.svg)).iter("path") if "line" in path.attrib["class"]]
    # Steps 1 to 3 lie in 46 ... 388, accuracies 0 to 1 in 184 ... 22: the second run ends at the second step.
    assert [path.attrib["d"] for path in paths] == ["M46.0 103.0L217.0 38.2L388.0 62.5", "M46.0 103.0L217.0 103.0"]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("0123456789abcdef", "All began with the same weights (SHA-256 0123456789ab…)."),
        ("f" * 16, "They began with different weights."),
        (None, "Whether all began with the same weights was not recorded."),
    ],
)
def test_the_page_says_whether_both_began_with_the_same_weights(
    runs: tuple[RunFolder, RunFolder], weights: str | None, says: str
) -> None:
    run, other = runs
    other.summary.write_text(json.dumps({"weights": weights}))
    path, printed = comparison.write([run.path, other.path])
    assert path == run.path / "compare.html"
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8"))).split())
    assert f"demo-dapo (DAPO) and demo (GRPO) {says}" in text
    assert "right, greedy: rendered, final 82.5 % 77.5 to 87.5 % n 400 right format" in text
    assert "groups asked for 114 32" in text
    assert printed.startswith(says)
    lines = [line.split() for line in printed.splitlines()]
    assert ["groups", "asked", "for", "114", "32"] in lines
    assert "No two of them have answered the same held-out questions on record" in text
    assert not (other.path / "compare.html").exists()


def test_runs_of_one_name_are_called_by_their_folders(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = make_run(tmp_path / "elsewhere" / "demo", "grpo", [], {})
    assert compared(runs[1], other).names == (str(tmp_path / "demo"), str(tmp_path / "elsewhere" / "demo"))


def test_another_one_that_is_no_run_is_an_error_of_one_line_and_leaves_the_page_as_it_was(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path
) -> None:
    run, other = runs
    out = tmp_path / "page.html"
    before = comparison.write([run.path, other.path], out=out)[0].read_bytes()
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(RunError) as error:
            comparison.write([run.path, folder], out=out)
        assert str(error.value).startswith(f"{folder}: not the folder of a run, it has no recipe.toml")
    with pytest.raises(RunError, match="comes twice; give each run once"):
        comparison.write([run.path, tmp_path / "demo" / ".." / "demo-dapo"], out=out)
    for file, content, problem in (
        (other.metrics, 'nonsense\n{"step": 2}\n', ":1: not a JSON object"),
        (other.evaluation / "held_out.parquet", "no Parquet", ": not a Parquet file ("),
    ):
        file.parent.mkdir(exist_ok=True)
        was = file.read_text() if file.exists() else None
        file.write_text(content)
        with pytest.raises(RunError, match=re.escape(f"{file}{problem}")):
            comparison.write([run.path, other.path], out=out)
        if was is not None:
            file.write_text(was)
    assert out.read_bytes() == before
    assert not run.comparison.exists()
