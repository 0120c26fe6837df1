"""A run folder -> `report.html`: one file that opens without a network, whatever state the run is in."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pathor1 import files
from pathor1.contrastive import ClipRecipe
from pathor1.report import numbers, rollouts, steps, summary
from pathor1.report.curves import number
from pathor1.report.rollouts import Rollouts
from pathor1.report.steps import Figure
from pathor1.report.summary import Headline, Summary
from pathor1.runs import RunFolder
from pathor1.stage import RunRecipe, StageRecipe, steps_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that the page shows. kind: GRPO, CPT ...; steps: that are planned, `done` and `warm_start_done`: the last one
    with metrics, 0 = none. rollouts: None = no rollouts yet, or a stage, which has none."""

    recipe: RunRecipe
    kind: str
    steps: int
    done: int
    warm_start_done: int
    summary: Summary | None
    headline: Headline | None
    warm_start_figures: tuple[Figure, ...]
    figures: tuple[Figure, ...]
    rollouts: Rollouts | None


def write(run_folder: Path) -> Path:
    """Writes the report of a run, finished or not, and returns its path.

    Raises RunError for a folder that is no run's and for a file of the run that is malformed, RecipeError for its
    recipe. Data files and pictures that are gone or broken only leave gaps, which the page names.
    """
    folder = RunFolder(Path(run_folder))
    files.write(folder.report, html(collect(folder)))
    return folder.report


def collect(folder: RunFolder) -> Page:
    """Reads what the page shows. Raises the errors of `write`."""
    run = numbers.read(folder)
    recipe = run.recipe
    last_step = run.steps[-1].step if run.steps else None
    if isinstance(recipe, ClipRecipe):
        figures = steps.figures(run.steps, steps.CLIP)
        answers = None
    elif isinstance(recipe, StageRecipe):
        figures = steps.figures(run.steps, (*steps.STAGE, *steps.by_source(run.steps)))
        answers = None
    else:
        figures = steps.figures(run.steps, steps.RL, limit=recipe.rl.max_probability_difference)
        answers = rollouts.collect(folder.ledger, recipe.data.train, last_step=last_step)
    return Page(
        recipe=recipe,
        kind=run.kind,
        steps=steps_of(recipe),
        done=last_step or 0,
        warm_start_done=run.warm_start[-1].step if run.warm_start else 0,
        summary=run.summary,
        headline=summary.headline(run.summary) if run.summary else None,
        warm_start_figures=tuple(steps.figures(run.warm_start, steps.WARM_START)),
        figures=tuple(figures),
        rollouts=answers,
    )


def html(page: Page) -> str:
    """The page as HTML; every text is escaped, and only our own SVG and script are not."""
    script = resources("pathor1.report").joinpath("answers.js").read_text(encoding="utf-8") if page.rollouts else ""
    return render("page.html.jinja", page=page, script=Markup(script))


def render(template: str, **values: Any) -> str:
    """One of the templates beside this file. script: runs by its checksum, which nothing else that is shown has."""
    environment = Environment(
        loader=PackageLoader("pathor1.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "digest": _digest}
    return environment.get_template(template).render(**values)


def _digest(script: str) -> str:
    """A script as Content-Security-Policy names it (CSP 3, section 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
