"""Is what lies in a run's folder the run that is to go on, or another one of its name?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pathor1 import checkpoints
from pathor1.errors import RunError
from pathor1.recipe_table import Table
from pathor1.runs import RunFolder


def has_begun(folder: RunFolder) -> bool:
    """Whether there is something to go on with: what failed before its first step has nothing to lose."""
    return folder.recipe.exists() and (folder.metrics.exists() or bool(checkpoints.complete(folder.checkpoints)))


def refuse_changes(where: str, begun: Table, recipe: Table, keys: Iterable[str], *, training: str = "") -> None:
    """Raises RunError where a recipe differs from the one that a run was begun with in one of these dotted keys.

    training: what a key's part `training` is called in the recipe.
    """
    for key in keys:
        was, wanted = _value(begun, key), _value(recipe, key)
        if was != wanted:
            raise RunError(
                f"{where}: a run of this name is there already, with {key.replace('training.', f'{training}.')} = "
                f"{was!r}, not {wanted!r}; choose another name, or set it as it was to go on with that run"
            )


def _value(recipe: Table, key: str) -> Any:
    """None for a key of a table that is not set."""
    found: Any = recipe
    for part in key.split("."):
        found = getattr(found, part) if found is not None else None
    return found
