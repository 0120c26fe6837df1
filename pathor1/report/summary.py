"""`summary.json`, what came out of a run, as the tables of the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from pathor1.errors import RunError

# key of the summary -> what it is called on the page
MEASURES = {
    "accuracy": "right, greedy",
    "format": "right format",
    "accuracy_sampled": "right, at temperature 1",
    "accuracy_shuffled_pictures": "right, pictures shuffled",
}


class Share(BaseModel):
    """A share of n questions, with its 95 % interval from low to high."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


def _as_share(value: object) -> object:
    return {"value": value} if isinstance(value, float | int) else value


# stage -> set -> share
Shares = dict[str, dict[str, Share]]


class Summary(BaseModel):
    """What the page shows of a summary; any key may be absent, others are left alone."""

    accuracy: Shares = {}
    format: Shares = {}
    accuracy_sampled: Shares = {}
    accuracy_shuffled_pictures: Shares = {}
    chance: dict[str, Annotated[Share, BeforeValidator(_as_share)]] = {}
    weights: str | None = None  # SHA-256 of those that RL began with
    max_probability_difference: float | None = None
    seconds: dict[str, float] = Field(default={})
    versions: dict[str, str] = Field(default={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A share in words: "41.2 %", and below it "36.5 to 46.1 %" and "n 400"; "" = there is none."""

    text: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """Rows are stages, and last what guessing would do; columns are the measures of each set."""

    sets: tuple[tuple[str, tuple[str, ...]], ...]  # a set and the names of its measures
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def read(path: Path) -> Summary | None:
    """The summary; None where there is none. Raises RunError where the file has another form."""
    if not path.exists():
        return None
    try:
        return Summary.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RunError(
            f"{path}: {f'{key}: ' if key else ''}{first['msg']}; write it anew, or remove it to have a page without it"
        ) from error


def headline(summary: Summary) -> Headline | None:
    """The table of shares, stages and sets in the file's order; None where nothing was measured."""
    measured = {name: shares for name in MEASURES if (shares := getattr(summary, name))}
    stages = list(dict.fromkeys(stage for shares in measured.values() for stage in shares))
    sets = list(dict.fromkeys(name for shares in measured.values() for by_set in shares.values() for name in by_set))
    columns = [
        (name, measure)
        for name in sets
        for measure, shares in measured.items()
        if any(name in by_set for by_set in shares.values())
    ]
    if not columns:
        return None
    rows = [
        (stage, tuple(cell(measured[measure].get(stage, {}).get(name), measure) for name, measure in columns))
        for stage in stages
    ]
    if summary.chance:
        guesses = (summary.chance.get(name) if measure == "accuracy" else None for name, measure in columns)
        rows.append(("guessing", tuple(cell(share, "accuracy") for share in guesses)))
    grouped = tuple((name, tuple(MEASURES[measure] for of, measure in columns if of == name)) for name in sets)
    return Headline(sets=grouped, rows=tuple(rows))


def cell(share: Share | None, measure: str) -> Cell:
    """A share in words. n stands beside the accuracy alone: the other measures are of the same questions."""
    if share is None:
        return Cell()
    details = [] if share.low is None or share.high is None else [f"{100 * share.low:.1f} to {100 * share.high:.1f} %"]
    details += [f"n {share.n}"] if share.n is not None and measure == "accuracy" else []
    return Cell(text=f"{100 * share.value:.1f} %", details=tuple(details))
