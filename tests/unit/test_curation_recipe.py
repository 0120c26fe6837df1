"""Curation's recipe: strict, with the nearest key named, and its page says what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathor1.curation.recipe import load
from pathor1.curation.recipe_docs import render
from pathor1.errors import RecipeError

ROOT = Path(__file__).parents[2]
SMALLEST = 'name = "books"\n[books]\npdfs = ["a.pdf"]\n'


def problem(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_the_page_is_current() -> None:
    page = ROOT / "docs" / "curation-recipe.md"
    assert page.read_text(encoding="utf-8") == render(), f"run `python -m pathor1.curation.recipe_docs {page}`"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "ray_jobs" / "recipes" / "curation").glob("*.toml")), ids=lambda path: path.name
)
def test_shipped_recipes_load(path: Path) -> None:
    assert load(path).books.pdfs == [str(Path.cwd() / "books")]


def test_paths_become_whole_and_keys_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(SMALLEST, encoding="utf-8")
    recipe = load(path, ["pages.dpi=144", "runs_dir=/elsewhere"])
    assert recipe.pages.dpi == 144
    assert recipe.folder == Path("/elsewhere/books")
    assert recipe.books.pdfs == [str(Path.cwd() / "a.pdf")]


def test_mistakes_are_one_line_each(tmp_path: Path) -> None:
    assert problem(tmp_path, SMALLEST + "[pages]\ndp = 200\n") == "unknown key pages.dp; did you mean pages.dpi?"
    assert problem(tmp_path, SMALLEST + "[pages]\ndpi = 20\n") == "pages.dpi = 20: must be at least 72"
    assert problem(tmp_path, 'name = "books"\n') == "the table [books] is missing"
    assert problem(tmp_path, SMALLEST + '[layout]\ndetector = "transformers"\n') == (
        'layout.detector = "transformers" needs layout.weights, its folder or file'
    )
    assert problem(tmp_path, SMALLEST + '[panels.model]\nurl = "localhost:8000"\nmodel = "m"\n') == (
        'panels.model.url = "localhost:8000": the URL of a server has to be http(s)://HOST/...'
    )
