"""The published numbers of benchmarks, to be shown beside ours."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files

from pathor1.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One benchmark's table. counts: column -> questions. rows: model -> percent in each column, and overall.

    overall: None where the paper has none. Where a paper's own cells say something else than what it has printed as
    their overall, `wrong_overall` has what they say.
    """

    title: str
    source: str
    counts: dict[str, int]
    rows: dict[str, tuple[dict[str, float], float | None]]
    wrong_overall: dict[str, float]

    @property
    def questions(self) -> int:
        """How many questions they are of."""
        return sum(self.counts.values())


def published() -> dict[str, Published]:
    """All benchmarks of `published.toml` by name."""
    text = (files("pathor1.evaluation") / "published.toml").read_text(encoding="utf-8")
    return {name: _table(table) for name, table in tomllib.loads(text).items()}


def named(name: str) -> Published:
    """One of them. Raises RecipeError where it has none of this name."""
    found = published()
    if name not in found:
        raise RecipeError(f"benchmark.published = {name!r}: none of {', '.join(found)}")
    return found[name]


def _table(table: dict[str, object]) -> Published:
    counts, rows, wrong = table["counts"], table["rows"], table.get("wrong_overall", {})
    assert isinstance(counts, dict)
    assert isinstance(rows, dict)
    assert isinstance(wrong, dict)
    has_overall = bool(table.get("overall", True))
    return Published(
        title=str(table["title"]),
        source=str(table["source"]),
        counts=counts,
        rows={
            model: (dict(zip(counts, cells, strict=False)), cells[-1] if has_overall else None)
            for model, cells in rows.items()
        },
        wrong_overall=wrong,
    )
