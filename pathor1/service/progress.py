"""How far a run has come, as its folder says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pathor1 import checkpoints
from pathor1.runs import RunFolder
from pathor1.stage import load_run, steps_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """step: the last one that is done, 0 = none; steps: of the recipe; at: when it was done; checkpoint: its step."""

    step: int
    steps: int
    at: datetime | None
    checkpoint: int | None


def progress(path: Path) -> Progress | None:
    """Of the run in a folder; None where this machine sees no such folder. Raises RecipeError for a broken recipe."""
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        return None
    recipe = load_run(folder.recipe)
    step, at = 0, None
    if folder.metrics.is_file():
        lines = folder.metrics.read_text(encoding="utf-8").split("\n")[:-1]  # a line that is being written has no end
        step = int(json.loads(lines[-1])["step"]) if lines else 0
        at = datetime.fromtimestamp(folder.metrics.stat().st_mtime).astimezone()
    last = checkpoints.latest(folder.checkpoints)
    return Progress(
        step=step,
        steps=steps_of(recipe),
        at=at,
        checkpoint=None if last is None else int(last.name.removeprefix("step-")),
    )
