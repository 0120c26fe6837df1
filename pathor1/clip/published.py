"""The paper's numbers of tables 1 and 2, to be shown beside ours."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pathor1.clip.retrieval import KS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A row of table 1, in percent: recall by k, and the mean that is printed, in both directions.

    wrong_mean: what the cells say, (image to text, text to image), where that is not what is printed.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    mean: tuple[float, float]
    wrong_mean: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guessed:
    """A row of table 2, in percent: accuracy by set, and the mean that is printed. wrong_mean: as in `Ranked`."""

    accuracy: dict[str, float]
    mean: float
    wrong_mean: float | None


def retrieval(name: str) -> dict[str, Ranked]:
    """The rows of a set of pairs, ARCH or Archive, by model; none for a set that the paper does not have."""
    table = _tables()["retrieval"].get(name)
    if table is None:
        return {}
    count = len(KS)
    return {
        model: Ranked(
            image_to_text=dict(zip(KS, cells[:count], strict=True)),
            text_to_image=dict(zip(KS, cells[count : 2 * count], strict=True)),
            mean=(cells[-2], cells[-1]),
            wrong_mean=tuple(table["wrong_mean"][model]) if model in table.get("wrong_mean", {}) else None,
        )
        for model, cells in table["rows"].items()
    }


def zero_shot() -> dict[str, Guessed]:
    """The rows of table 2 by model."""
    table = _tables()["zero_shot"]
    return {
        model: Guessed(
            accuracy=dict(zip(table["sets"], cells[:-1], strict=True)),
            mean=cells[-1],
            wrong_mean=table["wrong_mean"].get(model),
        )
        for model, cells in table["rows"].items()
    }


def pairs(name: str) -> int:
    """How many pairs a set of table 1 has; 0 = not known."""
    return int(_tables()["retrieval"].get(name, {}).get("pairs", 0))


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads((files("pathor1.clip") / "published.toml").read_text(encoding="utf-8"))
