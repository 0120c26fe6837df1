"""What a run folder says in numbers: its recipe, its steps, and what it was worth on held-out questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1.errors import RunError
from pathor1.evaluation.run import QUESTIONS
from pathor1.report import steps, summary
from pathor1.report.steps import Step
from pathor1.report.summary import Summary
from pathor1.rl.ledger import SCHEMA
from pathor1.runs import RunFolder
from pathor1.stage import RunRecipe, kind_of, load_run

# The stage of `pathor1 evaluate` that is a run's last checkpoint.
LAST = "final"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A held-out question: the same one in two runs where all of it is the same."""

    source: str
    id: str
    answer: str  # the right one


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Which held-out questions a run had right (1) and wrong (0), greedily. what: who asked, and which weights."""

    what: str
    right: Mapping[Question, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run folder says. `summary`: None = nothing was evaluated.

    evaluated: by `pathor1 evaluate`, its last checkpoint; in_training: the last evaluation within the run. None = none.
    """

    folder: RunFolder
    recipe: RunRecipe
    summary: Summary | None
    warm_start: Sequence[Step]
    steps: Sequence[Step]
    evaluated: Answered | None
    in_training: Answered | None

    @property
    def kind(self) -> str:
        """What it is: GRPO, DAPO, CPT, SFT or CLIP."""
        return kind_of(self.recipe)


def read(folder: RunFolder) -> Run:
    """Reads a run, finished or not. Raises RunError for what is no run's folder or malformed, RecipeError likewise."""
    if not folder.recipe.is_file():
        raise RunError(f"{folder.path}: not the folder of a run, it has no recipe.toml; give one such as runs/demo")
    return Run(
        folder=folder,
        recipe=load_run(folder.recipe),
        # A run that was evaluated outside the demonstration has the evaluation alone.
        summary=summary.read(folder.summary) or summary.read(folder.evaluation / "held_out.json"),
        warm_start=steps.read(folder.warm_start_metrics),
        steps=steps.read(folder.metrics),
        evaluated=_evaluated(folder.evaluation / "held_out.parquet"),
        in_training=_in_training(folder.held_out),
    )


def _evaluated(file: Path) -> Answered | None:
    if not file.exists():
        return None
    rows = [row for row in _rows(file, QUESTIONS.names) if row["model"] == LAST]
    right = {Question(source=row["source"], id=row["id"], answer=row["answer"]): row["right"] for row in rows}
    return Answered(what="last checkpoint, by pathor1 evaluate", right=right) if right else None


def _in_training(records: Path) -> Answered | None:
    files = {int(file.stem.removeprefix("step-")): file for file in records.glob("step-*.parquet")}
    if not files:
        return None
    last = max(files)
    rows = _rows(files[last], SCHEMA.names)
    right = {Question(source=row["source"], id=row["id"], answer=row["answer"]): row["accuracy"] for row in rows}
    return Answered(what=f"step {last}, within the run", right=right)


def _rows(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    try:
        parquet = pq.ParquetFile(file)
        absent = [name for name in columns if name not in parquet.schema_arrow.names]
        if absent:
            raise RunError(f"{file}: no column {', '.join(absent)}; write it anew, or remove it")
        rows: list[dict[str, Any]] = parquet.read(columns=list(columns)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            f"{file}: not a Parquet file ({str(error).splitlines()[0]}); write it anew, or remove it"
        ) from error
    return rows
