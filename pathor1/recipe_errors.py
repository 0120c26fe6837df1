"""pydantic's complaints about a recipe, as one line in the recipe's own words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

# What is allowed, by pydantic's type of error; the braces are filled from its context.
_ALLOWED = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a text in quotes",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must not be empty",
}


def explain(error: ValidationError, known: Sequence[str]) -> tuple[str, str]:
    """The first mistake: its dotted key ("" where several keys do not fit each other), and one line about it.

    An unknown key comes before all others, as it often is the cause of a missing one. `known`: all keys of a recipe.
    """
    problems: list[Any] = [*error.errors()]
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key = _dotted(first["loc"])
    kind = first["type"]
    if kind == "extra_forbidden":
        text = f"unknown key {key}{nearest(key, known)}"
    elif kind == "missing":
        is_table = any(name.startswith(f"{key}.") for name in known)
        text = f"the table [{key}] is missing" if is_table else f"{key} is missing, and has no default"
    elif kind == "value_error" and isinstance(first["input"], dict):
        key, text = "", str(first["ctx"]["error"])
    else:
        text = f"{key} = {_shown(first['input'])}: {_allowed(first)}"
    more = len(problems) - 1
    return key, text + (f" (and {more} more)" if more else "")


def _allowed(problem: Any) -> str:
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] not in _ALLOWED:
        return str(problem["msg"])
    return _ALLOWED[problem["type"]].format(**problem.get("ctx", {}))


def _dotted(location: Sequence[str | int]) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _shown(value: Any) -> str:
    """A value as TOML has it, near enough, and short enough for one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(key: str, known: Sequence[str]) -> str:
    """ "; did you mean ...?": the same name in another table, else a near one in the same table, else a near one."""
    tables = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    names = sorted({*known, *tables})
    table, _, last = key.rpartition(".")
    same = [name for name in names if name.rpartition(".")[2] == last]
    siblings = [name for name in names if name.rpartition(".")[0] == table]
    for pool in (same, _near(last, siblings), _near(last, names)):
        if pool:
            best = max(pool, key=lambda name: difflib.SequenceMatcher(None, key, name).ratio())
            return f"; did you mean {best}?"
    return "; docs/recipes.md lists all keys"


def _near(last: str, names: Sequence[str]) -> list[str]:
    lasts = {name.rpartition(".")[2] for name in names}
    near = difflib.get_close_matches(last, sorted(lasts), n=1)
    return [name for name in names if near and name.rpartition(".")[2] == near[0]]
