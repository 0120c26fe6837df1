"""A run folder -> `report.html`: one file that opens without a network, whatever state the run is in."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from pathor1 import files
from pathor1.recipe import Recipe
from pathor1.report import comparison, rollouts, steps, summary
from pathor1.report.comparison import Comparison
from pathor1.report.curves import number
from pathor1.report.rollouts import Rollouts
from pathor1.report.steps import Figure
from pathor1.report.summary import Headline, Summary
from pathor1.runs import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that the page shows. `done` and `warm_start_done`: the last step with metrics, 0 = none."""

    recipe: Recipe
    done: int
    warm_start_done: int
    summary: Summary | None
    headline: Headline | None
    comparison: Comparison | None
    warm_start_figures: tuple[Figure, ...]
    figures: tuple[Figure, ...]
    rollouts: Rollouts | None


def write(run_folder: Path, *, against: Path | None = None) -> Path:
    """Writes the report of a run, finished or not, and returns its path. against: the folder of a run to put beside it.

    Raises RunError for a folder that is no run's and for a file of the run that is malformed, RecipeError for its
    recipe. Data files and pictures that are gone or broken only leave gaps, which the page names.
    """
    folder = RunFolder(Path(run_folder))
    files.write(folder.report, html(collect(folder, against=RunFolder(Path(against)) if against else None)))
    return folder.report


def collect(folder: RunFolder, *, against: RunFolder | None = None) -> Page:
    """Reads what the page shows. Raises the errors of `write`."""
    run = comparison.read(folder)
    last_step = run.steps[-1].step if run.steps else None
    return Page(
        recipe=run.recipe,
        done=last_step or 0,
        warm_start_done=run.warm_start[-1].step if run.warm_start else 0,
        summary=run.summary,
        headline=summary.headline(run.summary) if run.summary else None,
        comparison=comparison.compare(run, comparison.read(against)) if against else None,
        warm_start_figures=tuple(steps.figures(run.warm_start, steps.WARM_START)),
        figures=tuple(steps.figures(run.steps, steps.RL, limit=run.recipe.rl.max_probability_difference)),
        rollouts=rollouts.collect(folder.ledger, run.recipe.data.train, last_step=last_step),
    )


def html(page: Page) -> str:
    """The page as HTML; every text is escaped, and only our own SVG is not."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    text = resources("pathor1.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(page=page)
