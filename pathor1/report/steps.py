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
from pathor1.rl.groups import REASONS


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
    zeros: bool = True  # a line that is 0 throughout is drawn, too


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
STAGE = (
    Plan(title="Loss", unit="nats a learned token", names={"loss": "loss"}),
    Plan(title="Gradient norm", unit="norm before clipping", names={"gradient_norm": "gradient norm"}),
    Plan(title="Learning rate", unit="of AdamW", names={"learning_rate": "rate"}, include=(0.0,)),
    Plan(title="Speed", unit="tokens a second", names={"tokens_per_second": "tokens"}, include=(0.0,)),
    Plan(
        title="Padding",
        unit="share of the places for tokens",
        names={"tokens/padding_share": "padding"},
        include=(0.0,),
    ),
    Plan(title="Time", unit="seconds a step", names={"seconds/step": "step", "seconds/data": "data"}, include=(0.0,)),
)
CLIP = (
    Plan(title="Loss", unit="nats: log(batch) by chance", names={"loss": "loss"}),
    Plan(title="Scale of the similarities", unit="at most 100", names={"similarity_scale": "scale"}),
    Plan(title="Gradient norm", unit="norm before clipping", names={"gradient_norm": "gradient norm"}),
    Plan(title="Learning rate", unit="of AdamW", names={"learning_rate": "rate"}, include=(0.0,)),
    Plan(title="Speed", unit="pairs a second", names={"pairs_per_second": "pairs"}, include=(0.0,)),
    Plan(title="Time", unit="seconds a step", names={"seconds/step": "step", "seconds/data": "data"}, include=(0.0,)),
)
# The most lines of a chart of losses by source: more cannot be told apart.
SOURCES = 3
_DIFFERENCE = Plan(
    title="vLLM against the trained model",
    unit="largest difference of a token's probability",
    names={"rollout/probability_difference_max": "difference"},
    log=True,
    bucket="max",
)
# What only some steps have: a line goes on from one to the next.
SPARSE = ("evaluation/", "seconds/evaluation", "seconds/checkpoint")
# Metric -> those of its interval.
INTERVALS = {"evaluation/accuracy": ("evaluation/accuracy_low", "evaluation/accuracy_high")}
RL = (
    Plan(
        title="Held-out questions",
        unit="share of questions, greedy; the band is the 95 % interval",
        names={"evaluation/accuracy": "right"},
        include=(0.0, 1.0),
    ),
    Plan(
        title="Rewards by part",
        unit="each before its weight, mean over rollouts",
        names={"reward/accuracy": "accuracy", "reward/format": "format", "reward/length": "length"},
        include=(0.0, 1.0),
        zeros=False,
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
    Plan(
        title="Groups dropped, by reason",
        unit="questions a step",
        names={f"dropped/{reason}": reason.replace("_", " ") for reason in REASONS},
        include=(0.0,),
        zeros=False,
    ),
    Plan(title="Entropy", unit="nats a token", names={"actor/entropy": "entropy"}, include=(0.0,)),
    Plan(title="KL to the reference", unit="nats a token", names={"actor/kl": "KL"}, include=(0.0,)),
    Plan(
        title="Gradient norm",
        unit="norm before clipping",
        names={"actor/gradient_norm": "gradient norm"},
        include=(0.0,),
    ),
    Plan(
        title="Length of answers",
        unit="tokens",
        names={"response_tokens/mean": "mean", "response_tokens/max": "longest"},
        include=(0.0,),
    ),
    Plan(
        title="Answers cut at the token limit",
        unit="share of rollouts",
        names={"rollout/truncated": "cut"},
        include=(0.0,),
    ),
    _DIFFERENCE,
    Plan(
        title="Time, by phase",
        unit="seconds; the whole step, and what it has of it",
        names={
            "seconds/step": "step",
            "seconds/generate": "answers",
            "seconds/old_log_prob": "log-probabilities",
            "seconds/reference": "reference",
            "seconds/update": "update",
            "seconds/weights_to_vllm": "weights to vLLM",
            "seconds/checkpoint": "checkpoint",
            "seconds/evaluation": "evaluation, beside it",
        },
        log=True,  # the first step takes many times as long as others
        zeros=False,
    ),
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


def by_source(steps: Sequence[Step]) -> tuple[Plan, ...]:
    """Charts of the losses by source, so many lines to each as can be told apart; none where there is one source."""
    names = sorted({name for step in steps for name in step.values if name.startswith("loss/")})
    parts = [names[place : place + SOURCES] for place in range(0, len(names), SOURCES)]
    return tuple(
        Plan(
            title="Loss by source" if len(parts) == 1 else f"Loss by source, {place} of {len(parts)}",
            unit="nats a learned token",
            names={name: name.removeprefix("loss/") for name in part},
        )
        for place, part in enumerate(parts, start=1)
    )


def figures(steps: Sequence[Step], plans: Sequence[Plan], *, limit: float | None = None) -> list[Figure]:
    """The charts of `plans` that have anything to show. limit: of the probability difference, None = there is none."""
    drawn = [_figure(steps, plan, limit if plan is _DIFFERENCE else None) for plan in plans]
    return [figure for figure in drawn if figure is not None]


def _figure(steps: Sequence[Step], plan: Plan, limit: float | None) -> Figure | None:
    series = tuple(
        line(steps, metric, name)
        for metric, name in plan.names.items()
        if any(step.values.get(metric, 0.0) != 0 or (plan.zeros and metric in step.values) for step in steps)
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
    """A metric's line with its interval, and a gap at each step that has none, but of what only some steps have."""
    if metric.startswith(SPARSE):
        steps = [step for step in steps if metric in step.values]
    low, high = (
        [step.values.get(edge, math.nan) for step in steps] for edge in INTERVALS.get(metric, (metric, metric))
    )
    return Series(
        name=name,
        steps=[step.step for step in steps],
        values=[step.values.get(metric, math.nan) for step in steps],
        low=low if metric in INTERVALS else (),
        high=high if metric in INTERVALS else (),
    )


def draw(chart: Chart) -> Figure | None:
    """A chart as the page shows it; None where no value can be drawn."""
    drawn = svg(chart)
    if drawn is None:
        return None
    legend = tuple((name, line.name, _last(line)) for name, line in zip(chart.colours, chart.series, strict=True))
    return Figure(title=chart.title, svg=drawn, legend=legend, note=_note(chart))


def _last(line: Series) -> str:
    """The last value, and its interval."""
    interval = f" ({number(line.low[-1])} to {number(line.high[-1])})" if line.edges else ""
    return number(line.values[-1]) + interval


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
