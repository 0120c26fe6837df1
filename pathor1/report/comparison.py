"""Two runs side by side: what came out, what became of their groups, what it took, and where their recipes differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from pathor1.errors import RunError
from pathor1.recipe import Recipe, load
from pathor1.report import steps, summary
from pathor1.report.curves import Chart, number
from pathor1.report.steps import Figure, Step
from pathor1.report.summary import MEASURES, Cell, Summary, cell
from pathor1.rl.groups import REASONS
from pathor1.runs import RunFolder

# Metric -> title, unit, and what the vertical axis reaches, of the figures that have a line for each run.
CURVES = {
    "reward/accuracy": ("Right answers", "share of rollouts", (0.0, 1.0)),
    "reward/mean": ("Reward", "weighted sum of its parts, mean", ()),
    "actor/entropy": ("Entropy", "nats a token", (0.0,)),
}
# Sums over all steps.
SUMS = {
    "groups/asked": "groups asked for",
    "groups/informative": "groups with right and wrong answers",
    "groups/trained": "groups trained on",
    **{f"dropped/{reason}": f"groups dropped: {reason.replace('_', ' ')}" for reason in REASONS},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run folder says in numbers. `summary`: None = nothing was evaluated."""

    folder: RunFolder
    recipe: Recipe
    summary: Summary | None
    warm_start: Sequence[Step]
    steps: Sequence[Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`names`: of the two runs, the report's own first. `tables`: caption -> rows, each with a cell for each run."""

    names: tuple[str, str]
    beginning: str
    tables: tuple[tuple[str, tuple[tuple[str, tuple[Cell, Cell]], ...]], ...]
    figures: tuple[Figure, ...]


Row = tuple[str, tuple[Cell, Cell]]
Pair = tuple[Run, Run]


def read(folder: RunFolder) -> Run:
    """Reads a run, finished or not. Raises RunError for what is no run's folder or malformed, RecipeError likewise."""
    if not folder.recipe.is_file():
        raise RunError(f"{folder.path}: not the folder of a run, it has no recipe.toml; give one such as runs/demo")
    return Run(
        folder=folder,
        recipe=load(folder.recipe),
        # A run that was evaluated outside the demonstration has the evaluation alone.
        summary=summary.read(folder.summary) or summary.read(folder.evaluation / "held_out.json"),
        warm_start=steps.read(folder.warm_start_metrics),
        steps=steps.read(folder.metrics),
    )


def compare(run: Run, other: Run) -> Comparison:
    """Puts `other` beside `run`. What only one of them has leaves a cell of the other empty. Raises RunError for a run
    beside itself."""
    if run.folder.path.resolve() == other.folder.path.resolve():
        raise RunError(f"{other.folder.path}: the run itself; give --against another one")
    pair = (run, other)
    tables = (("Held-out questions", shares(pair)), ("Training", training(pair)), ("Recipe", settings(pair)))
    return Comparison(
        names=names(pair),
        beginning=beginning(pair),
        tables=tuple((caption, tuple(rows)) for caption, rows in tables if rows),
        figures=tuple(curves(pair)),
    )


def names(pair: Pair) -> tuple[str, str]:
    """What the runs are called: "demo-dapo (DAPO)"; where that is the same, their folders."""
    run, other = (f"{one.recipe.name} ({one.recipe.rl.algorithm.upper()})" for one in pair)
    return (run, other) if run != other else (str(pair[0].folder.path), str(pair[1].folder.path))


def beginning(pair: Pair) -> str:
    """Whether the two began with the same weights, as far as their summaries know."""
    run, other = (one.summary.weights if one.summary else None for one in pair)
    if run is None or other is None:
        return "Whether both began with the same weights was not recorded."
    if run != other:
        return "They began with different weights."
    return f"Both began with the same weights (SHA-256 {run[:12]}…)."


def shares(pair: Pair) -> list[Row]:
    """Accuracy and format of each set and stage, as the evaluation has them."""
    rows: list[Row] = []
    for measure in ("accuracy", "format"):
        found: list[Mapping[str, Mapping[str, Any]]] = [
            getattr(one.summary, measure) if one.summary else {} for one in pair
        ]
        stages = dict.fromkeys(stage for each in found for stage in each)
        sets = dict.fromkeys(name for each in found for by_set in each.values() for name in by_set)
        for name, stage in ((name, stage) for name in sets for stage in stages):
            run, other = (cell(each.get(stage, {}).get(name), measure) for each in found)
            if run.text or other.text:
                rows.append((f"{MEASURES[measure]}: {name}, {stage.replace('_', ' ')}", (run, other)))
    return rows


def training(pair: Pair) -> list[Row]:
    """Groups, tokens and time over all steps."""
    sums = [_row(name, pair, partial(total, metric=metric)) for metric, name in SUMS.items()]
    happened = [row for row in sums if any(each.text not in ("", "0") for each in row[1])]
    return [
        _row("steps", pair, lambda one: float(len(one.steps))),
        *happened,
        _row("generated tokens that were trained on", pair, trained_share, lambda value: f"{100 * value:.1f} %"),
        _row("tokens of an answer that was trained on, mean", pair, partial(mean, metric="response_tokens/mean")),
        _row("seconds of all steps", pair, partial(total, metric="seconds/step")),
        _row("seconds of RL, with its start and end", pair, rl_seconds),
    ]


def _row(name: str, pair: Pair, value: Callable[[Run], float | None], text: Callable[[float], str] = number) -> Row:
    run, other = (Cell() if (found := value(one)) is None else Cell(text=text(found)) for one in pair)
    return name, (run, other)


def total(run: Run, metric: str) -> float | None:
    """The sum of a metric over the steps that have it; None where none has."""
    values = [step.values[metric] for step in run.steps if metric in step.values]
    return sum(values) if values else None


def mean(run: Run, metric: str) -> float | None:
    """Its mean over them."""
    values = [step.values[metric] for step in run.steps if metric in step.values]
    return fmean(values) if values else None


def trained_share(run: Run) -> float | None:
    """The share of all tokens that were generated, and came to an end, that an update has learned from."""
    generated, trained = total(run, "tokens/generated"), total(run, "tokens/trained")
    return trained / generated if generated and trained is not None else None


def rl_seconds(run: Run) -> float | None:
    """How long the demonstration's RL phase took."""
    return run.summary.seconds.get("rl") if run.summary else None


def settings(pair: Pair) -> list[Row]:
    """The keys whose values differ. A path in a run's own folder is the same as one in the other's."""
    run, other = (_leaves(one) for one in pair)
    return [
        (key, (Cell(text=run.get(key, "not set")), Cell(text=other.get(key, "not set"))))
        for key in dict.fromkeys([*run, *other])
        if run.get(key) != other.get(key) and key not in ("name", "runs_dir")
    ]


def _leaves(run: Run) -> dict[str, str]:
    own = f"{run.recipe.runs_dir}/{run.recipe.name}/"

    def walk(table: Mapping[str, Any], prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in table.items():
            if isinstance(value, dict):
                found.update(walk(value, f"{prefix}{key}."))
            else:
                found[f"{prefix}{key}"] = str(value).replace(own, "")
        return found

    return walk(run.recipe.model_dump(mode="json", exclude_none=True), "")


def curves(pair: Pair) -> list[Figure]:
    """A figure for each of `CURVES`, with a line for each run that has its metric."""
    figures: list[Figure] = []
    for metric, (title, unit, include) in CURVES.items():
        series = tuple(
            steps.line(one.steps, metric, name)
            for one, name in zip(pair, names(pair), strict=True)
            if any(metric in step.values for step in one.steps)
        )
        figure = steps.draw(Chart(title=title, unit=unit, series=series, include=include))
        figures += [figure] if figure else []
    return figures
