"""Runs side by side: what came out, and whether it differs by more than chance; what it took; how recipes differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from pathor1 import files
from pathor1.errors import RunError
from pathor1.evaluation.intervals import Difference, difference
from pathor1.evaluation.measures import ALL
from pathor1.report import numbers, page, steps
from pathor1.report.curves import Chart, number
from pathor1.report.numbers import Answered, Run
from pathor1.report.steps import Figure, Step
from pathor1.report.summary import MEASURES, Cell, Share, cell
from pathor1.rl.groups import REASONS
from pathor1.runs import RunFolder

# Metric -> title, unit, and what the vertical axis reaches, of the figures that have a line for each run.
CURVES = {
    "evaluation/accuracy": ("Held-out questions", "share of questions, greedy; bands are 95 % intervals", (0.0, 1.0)),
    "reward/accuracy": ("Right answers", "share of rollouts", (0.0, 1.0)),
    "reward/mean": ("Reward", "weighted sum of its parts, mean", ()),
    "response_tokens/mean": ("Length of answers", "tokens, mean", (0.0,)),
    "actor/entropy": ("Entropy", "nats a token", (0.0,)),
    "actor/kl": ("KL to the reference", "nats a token", (0.0,)),
    "loss": ("Loss", "nats a learned token", ()),
    "seconds/step": ("Time", "seconds a step", (0.0,)),
}
# Sums over all steps.
SUMS = {
    "groups/asked": "groups asked for",
    "groups/informative": "groups with right and wrong answers",
    "groups/trained": "groups trained on",
    **{f"dropped/{reason}": f"groups dropped: {reason.replace('_', ' ')}" for reason in REASONS},
}
EVALUATION = ("accuracy", "accuracy_low", "accuracy_high", "questions")
MOST = 8  # runs: as many as there are colours

Row = tuple[str, tuple[Cell, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two runs on the questions that both have answered: the later one against the earlier one."""

    run: str
    against: str
    on: str  # a set of questions, or `ALL`
    asked: str  # of which weights
    told: Difference

    @property
    def points(self) -> str:
        """The difference in points, such as "+3.25"."""
        return _points(self.told.value)

    @property
    def interval(self) -> str:
        """Its 95 % interval: "+0.75 to +5.75"."""
        return f"{_points(self.told.low)} to {_points(self.told.high)}"

    @property
    def p(self) -> str:
        """McNemar's p, and whether the difference may be chance."""
        p = "p < 0.001" if self.told.p < 0.001 else f"p = {self.told.p:.3f}"
        return p if self.told.significant else f"{p}: not significant"

    def __str__(self) -> str:
        on = f"{self.told.n} questions" if self.on == ALL else f"{self.told.n} {self.on}"
        told = f"{self.points} points ({self.interval}), {self.p}"
        return f"{self.run} against {self.against} on {on}: {told} ({self.asked})"


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`names`: of the runs. `tables`: caption -> rows, each with a cell for each run."""

    names: tuple[str, ...]
    beginning: str
    pairs: tuple[Paired, ...]
    tables: tuple[tuple[str, tuple[Row, ...]], ...]
    figures: tuple[Figure, ...]


def write(folders: Sequence[Path], *, out: Path | None = None) -> tuple[Path, str]:
    """Compares runs: writes the page, and returns its path and the tables as text.

    out: where the page goes; None = `compare.html` in the folder of the first. Raises RunError for a folder that is no
    run's or comes twice, for a file of a run that is malformed, and for fewer than two or too many runs.
    """
    found = compare([numbers.read(RunFolder(Path(folder))) for folder in folders])
    target = out or RunFolder(Path(folders[0])).comparison
    files.write(target, page.render("compare.html.jinja", found=found, script=""))
    return target, text(found)


def compare(runs: Sequence[Run]) -> Comparison:
    """Puts runs side by side. What only some of them have leaves the cells of the others empty.

    Raises RunError for a run beside itself, and for fewer than two or more than `MOST`.
    """
    if not 2 <= len(runs) <= MOST:
        raise RunError(f"{len(runs)} runs to compare; give 2 to {MOST}")
    seen: set[Path] = set()
    for run in runs:
        if run.folder.path.resolve() in seen:
            raise RunError(f"{run.folder.path}: comes twice; give each run once")
        seen.add(run.folder.path.resolve())
    tables = (("Held-out questions", shares(runs)), ("Training", training(runs)), ("Recipe", settings(runs)))
    return Comparison(
        names=names(runs),
        beginning=beginning(runs),
        pairs=tuple(pairs(runs)),
        tables=tuple((caption, tuple(rows)) for caption, rows in tables if rows),
        figures=tuple(curves(runs)),
    )


def names(runs: Sequence[Run]) -> tuple[str, ...]:
    """What the runs are called: "demo-dapo (DAPO)"; where two are called the same, their folders."""
    found = tuple(f"{run.recipe.name} ({run.kind})" for run in runs)
    return found if len(set(found)) == len(found) else tuple(str(run.folder.path) for run in runs)


def beginning(runs: Sequence[Run]) -> str:
    """Whether the runs began with the same weights, as far as their summaries know."""
    weights = {run.summary.weights if run.summary else None for run in runs}
    if None in weights:
        return "Whether all began with the same weights was not recorded."
    if len(weights) > 1:
        return "They began with different weights."
    return f"All began with the same weights (SHA-256 {str(weights.pop())[:12]}…)."


# ---------------------------------------------------------------------- held-out questions


def shares(runs: Sequence[Run]) -> list[Row]:
    """Accuracy and format of each set and stage, as the evaluation has them."""
    rows: list[Row] = []
    for measure in ("accuracy", "format"):
        found: list[Mapping[str, Mapping[str, Any]]] = [
            getattr(run.summary, measure) if run.summary else {} for run in runs
        ]
        stages = dict.fromkeys(stage for each in found for stage in each)
        sets = dict.fromkeys(name for each in found for by_set in each.values() for name in by_set)
        for name, stage in ((name, stage) for name in sets for stage in stages):
            cells = tuple(cell(each.get(stage, {}).get(name), measure) for each in found)
            if any(one.text for one in cells):
                rows.append((f"{MEASURES[measure]}: {name}, {stage.replace('_', ' ')}", cells))
    within = [[step for step in run.steps if "evaluation/accuracy" in step.values] for run in runs]
    if any(within):
        last = [found[-1] if found else None for found in within]
        best = [max(found, key=lambda step: step.values["evaluation/accuracy"], default=None) for found in within]
        rows += [
            ("right, greedy: within the run, last", tuple(map(_within, last))),
            ("right, greedy: within the run, best", tuple(map(_within, best))),
        ]
    return rows


def _within(step: Step | None) -> Cell:
    """The accuracy of an evaluation within a run."""
    if step is None:
        return Cell()
    value, low, high, n = (step.values[f"evaluation/{name}"] for name in EVALUATION)
    of_step = cell(Share(value=value, low=low, high=high, n=int(n)), "accuracy")
    return Cell(text=of_step.text, details=(*of_step.details, f"step {step.step}"))


def pairs(runs: Sequence[Run]) -> list[Paired]:
    """Each two runs on the questions that both have answered, all of them and by source; none where there are none."""
    found: list[Paired] = []
    for (before, first), (after, second) in combinations(zip(names(runs), runs, strict=True), 2):
        of_both = _of_both(first, second)
        if of_both is None:
            continue
        old, new = of_both
        groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for question, right in new.right.items():
            if question in old.right:
                for name in (ALL, question.source):
                    groups[name].append((right, old.right[question]))
        asked = new.what if new.what == old.what else f"{new.what}; {old.what}"
        found += [
            Paired(run=after, against=before, on=name, asked=asked, told=difference(*zip(*answers, strict=True)))
            for name, answers in groups.items()
            if name == ALL or len(groups) > 2
        ]
    return found


def _of_both(first: Run, second: Run) -> tuple[Answered, Answered] | None:
    """The answers of two runs to some of the same questions, asked in the same way."""
    for old, new in ((first.evaluated, second.evaluated), (first.in_training, second.in_training)):
        if old is not None and new is not None and old.right.keys() & new.right.keys():
            return old, new
    return None


# ---------------------------------------------------------------------- training, recipes, curves


def training(runs: Sequence[Run]) -> list[Row]:
    """Groups, tokens and time over all steps; what none of the runs has is left out."""
    sums = [_row(name, runs, partial(total, metric=metric)) for metric, name in SUMS.items()]
    happened = [row for row in sums if any(each.text not in ("", "0") for each in row[1])]
    rows = [
        _row("steps", runs, lambda one: float(len(one.steps))),
        *happened,
        _row("loss of the last ten steps, mean", runs, last_loss),
        _row("tokens that were learned", runs, partial(total, metric="tokens/learned")),
        _row("generated tokens that were trained on", runs, trained_share, lambda value: f"{100 * value:.1f} %"),
        _row("tokens of an answer that was trained on, mean", runs, partial(mean, metric="response_tokens/mean")),
        _row("seconds of all steps", runs, partial(total, metric="seconds/step")),
        _row("seconds of RL, with its start and end", runs, rl_seconds),
    ]
    return [row for row in rows if any(each.text for each in row[1])]


def _row(
    name: str, runs: Sequence[Run], value: Callable[[Run], float | None], text: Callable[[float], str] = number
) -> Row:
    return name, tuple(Cell() if (found := value(one)) is None else Cell(text=text(found)) for one in runs)


def total(run: Run, metric: str) -> float | None:
    """The sum of a metric over the steps that have it; None where none has."""
    values = [step.values[metric] for step in run.steps if metric in step.values]
    return sum(values) if values else None


def mean(run: Run, metric: str) -> float | None:
    """Its mean over them."""
    values = [step.values[metric] for step in run.steps if metric in step.values]
    return fmean(values) if values else None


def last_loss(run: Run) -> float | None:
    """The mean of a stage's loss over its last ten steps; None for RL."""
    values = [step.values["loss"] for step in run.steps[-10:] if "loss" in step.values]
    return fmean(values) if values else None


def trained_share(run: Run) -> float | None:
    """The share of all tokens that were generated, and came to an end, that an update has learned from."""
    generated, trained = total(run, "tokens/generated"), total(run, "tokens/trained")
    return trained / generated if generated and trained is not None else None


def rl_seconds(run: Run) -> float | None:
    """How long the demonstration's RL phase took."""
    return run.summary.seconds.get("rl") if run.summary else None


def settings(runs: Sequence[Run]) -> list[Row]:
    """The keys whose values differ. A path in a run's own folder is the same as one in another's."""
    found = [_leaves(run) for run in runs]
    return [
        (key, tuple(Cell(text=each.get(key, "not set")) for each in found))
        for key in dict.fromkeys(key for each in found for key in each)
        if len({each.get(key) for each in found}) > 1 and key not in ("name", "runs_dir")
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


def curves(runs: Sequence[Run]) -> list[Figure]:
    """A figure for each of `CURVES`, with a line for each run that has its metric, in the run's own colour."""
    figures: list[Figure] = []
    for metric, (title, unit, include) in CURVES.items():
        series = tuple(
            replace(steps.line(run.steps, metric, name), colour=place)
            for place, (run, name) in enumerate(zip(runs, names(runs), strict=True))
            if any(metric in step.values for step in run.steps)
        )
        figure = steps.draw(Chart(title=title, unit=unit, series=series, include=include))
        figures += [figure] if figure else []
    return figures


# ---------------------------------------------------------------------- as text


def text(found: Comparison) -> str:
    """The tables for a terminal."""
    blocks = [found.beginning]
    if found.pairs:
        blocks.append("\n".join(map(str, found.pairs)))
    for caption, rows in found.tables:
        blocks.append("\n".join([f"{caption}:", *_aligned([("", found.names), *map(_plain, rows)])]))
    return "\n\n".join(blocks)


def _plain(row: Row) -> tuple[str, Sequence[str]]:
    name, cells = row
    return name, [" ".join([one.text, *(f"({line})" for line in one.details)]) for one in cells]


def _aligned(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    first = max(len(name) for name, _ in rows)
    widths = [max(len(cells[place]) for _, cells in rows) for place in range(len(rows[0][1]))]
    return [
        "  ".join([name.ljust(first), *(one.rjust(width) for one, width in zip(cells, widths, strict=True))]).rstrip()
        for name, cells in rows
    ]
