"""The numbers of a run's steps: `metrics.jsonl` and `warm_start.jsonl`, and the charts that are made of them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from pathor1.errors import RunError
from pathor1.report.curves import Chart, Series, bucket_size, drawable, number, svg


@dataclass(frozen=True, slots=True)
class Step:
    """One step's numbers by name; what is no number is left out."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A chart before its numbers: `names` are metric -> name of its line."""

    title: str
    unit: str
    names: Mapping[str, str]
    include: tuple[float, ...] = ()
    log: bool = False
    bucket: Literal["mean", "max"] = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart as the page shows it. `legend`: class, name and last value of each line; `note`: "" = nothing to say."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, str, str], ...]
    note: str


WARM_START = (
    Plan(title="Warm start: loss", unit="nats a token", names={"loss": "loss"}),
    Plan(title="Warm start: gradient norm", unit="norm before clipping", names={"gradient_norm": "gradient norm"}),
)
_DIFFERENCE = Plan(
    title="vLLM against the trained model",
    unit="largest difference of a token's probability",
    names={"rollout/probability_difference_max": "difference"},
    log=True,
    bucket="max",
)
RL = (
    Plan(
        title="Right answers and right format",
        unit="share of rollouts",
        names={"reward/accuracy": "accuracy", "reward/format": "format"},
        include=(0.0, 1.0),
    ),
    Plan(title="Reward", unit="weighted sum of its parts, mean", names={"reward/mean": "reward"}),
    Plan(
        title="Groups",
        unit="questions a step",
        names={
            "groups/informative": "informative",
            "groups/all_right": "all right",
            "groups/all_wrong": "all wrong",
        },
        include=(0.0,),
    ),
    Plan(title="Entropy", unit="nats a token", names={"actor/entropy": "entropy"}, include=(0.0,)),
    Plan(title="KL to the reference", unit="nats a token", names={"actor/kl": "KL"}, include=(0.0,)),
    Plan(
        title="Gradient norm",
        unit="norm before clipping",
        names={"actor/gradient_norm": "gradient norm"},
        include=(0.0,),
    ),
    Plan(title="Length of answers", unit="tokens, mean", names={"response_tokens/mean": "length"}),
    Plan(
        title="Answers cut at the token limit",
        unit="share of rollouts",
        names={"rollout/truncated": "cut"},
        include=(0.0,),
    ),
    _DIFFERENCE,
    Plan(title="Time", unit="seconds a step", names={"seconds/step": "step"}, include=(0.0,)),
)


def read(path: Path) -> list[Step]:
    """The steps of a file of JSON lines, in order; [] where there is no file.

    A last line without an end was being written when the run was stopped, and is left out where it is not whole. Of a
    step that comes twice the later line counts. Raises RunError for any other line that is not a step's.
    """
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    steps = [_step(line, f"{path}:{place}") for place, line in enumerate(lines, start=1)]
    if last:
        with contextlib.suppress(RunError):
            steps.append(_step(last, str(path)))
    by_step = {step.step: step for step in steps}
    return [by_step[step] for step in sorted(by_step)]


def _step(line: bytes, where: str) -> Step:
    try:
        row = json.loads(line, parse_int=float)
    except (ValueError, RecursionError):
        row = None
    step = row.get("step") if isinstance(row, dict) else None
    if row is None or not isinstance(step, float) or not step.is_integer():
        raise RunError(f'{where}: not a JSON object with a whole number "step"; mend or delete this line')
    return Step(step=int(step), values={name: value for name, value in row.items() if isinstance(value, float)})


def figures(steps: Sequence[Step], plans: Sequence[Plan], *, limit: float | None = None) -> list[Figure]:
    """The charts of `plans` that have anything to show. limit: of the probability difference, None = there is none."""
    drawn = [_figure(steps, plan, limit if plan is _DIFFERENCE else None) for plan in plans]
    return [figure for figure in drawn if figure is not None]


def _figure(steps: Sequence[Step], plan: Plan, limit: float | None) -> Figure | None:
    series = tuple(
        line(steps, metric, name) for metric, name in plan.names.items() if any(metric in step.values for step in steps)
    )
    chart = Chart(
        title=plan.title,
        unit=plan.unit,
        series=series,
        include=plan.include,
        log=plan.log,
        limit=limit,
        bucket=plan.bucket,
    )
    return draw(chart)


def line(steps: Sequence[Step], metric: str, name: str) -> Series:
    """A metric's line, with a gap at each step that has none."""
    return Series(
        name=name,
        steps=[step.step for step in steps],
        values=[step.values.get(metric, math.nan) for step in steps],
    )


def draw(chart: Chart) -> Figure | None:
    """A chart as the page shows it; None where no value can be drawn."""
    drawn = svg(chart)
    if drawn is None:
        return None
    legend = tuple((f"c{index}", line.name, number(line.values[-1])) for index, line in enumerate(chart.series))
    return Figure(title=chart.title, svg=drawn, legend=legend, note=_note(chart))


def _note(chart: Chart) -> str:
    """What a chart does not show as it is: thinned lines and gaps."""
    size = bucket_size(max(len(series.steps) for series in chart.series))
    gaps, count = max(
        (sum(not drawable(value, log=chart.log) for value in series.values), len(series.steps))
        for series in chart.series
    )
    notes = []
    if size > 1:
        notes.append(f"each point: the {chart.bucket} of {size} steps")
    if gaps:
        notes.append(f"no number to draw at {gaps} of {count} steps")
    return "; ".join(notes)
