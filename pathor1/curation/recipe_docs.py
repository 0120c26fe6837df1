"""Makes `docs/curation-recipe.md` from the recipe's models: `python -m pathor1.curation.recipe_docs [FILE]`."""

from __future__ import annotations

import sys

from pathor1 import files
from pathor1.curation.recipe import CurationRecipe
from pathor1.recipe_docs import tables

_HEAD = """\
# Recipes of curation

<!-- Made by `python -m pathor1.curation.recipe_docs docs/curation-recipe.md` from pathor1/curation/recipe.py. -->

For `pathor1 curate STAGE RECIPE`; [curation.md](curation.md) says what the stages do. A key that is not below is an
error. `ray_jobs/recipes/curation/textbooks.toml` is one to start from.
"""


def render() -> str:
    """The page as Markdown."""
    return _HEAD + "".join(tables(CurationRecipe, ""))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        files.write(sys.argv[1], render())
    else:
        print(render(), end="")
