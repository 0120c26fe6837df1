"""docs/recipes.md says what the models say."""

from __future__ import annotations

from pathlib import Path

from pathor1.recipe import keys
from pathor1.recipe_docs import render

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run `python -m pathor1.recipe_docs docs/recipes.md`"


def test_every_key_has_its_row() -> None:
    page = render()
    missing = [key for key in keys() if f"| `{key}` | " not in page]
    assert missing == ["verl"]  # has a section of its own
    assert "## `[verl]`" in page


def test_rows_say_type_bound_and_default() -> None:
    page = render()
    assert "| `rl.group_size` | whole number ≥ 2 | `8` | Answers to one question" in page
    assert "| `rollout.memory_fraction` | number > 0, < 1 | `0.6` |" in page
    assert '| `rl.algorithm` | `"grpo"` or `"dapo"` | `"grpo"` |' in page
    assert "| `rl.clip_low` | number ≥ 0, ≤ 1 | not set |" in page
    assert "| `data.train` | list of text | required |" in page
