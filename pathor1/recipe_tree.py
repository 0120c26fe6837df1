"""A recipe's TOML as a tree of tables, with the overrides of the command line in it, before it is checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pathor1.errors import RecipeError


def read(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The tree, and the dotted keys that were overridden.

    `verl` holds dotted names, one level deep. Raises RecipeError for a file that is missing or no TOML, and for an
    override that is not key=value.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; ray_jobs/recipes/ holds some to start from") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error
    _flatten_verl(tree)
    return tree, [_override(tree, override) for override in overrides]


def _override(tree: dict[str, Any], text: str) -> str:
    """Sets `key=value` in place and returns the key."""
    key, separator, raw = text.partition("=")
    key = key.strip()
    if not separator or not all(key.split(".")):
        raise RecipeError(f"--set {text}: write it as key=value, for example --set rl.group_size=8")
    table: dict[str, Any] = tree
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, start=1):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {text}: {'.'.join(parents[:depth])} is a value, not a table")
        if parent == "verl" and depth == 1:
            last = key.removeprefix("verl.")  # its keys are dotted names
            break
    table[last] = _toml_value(raw.strip())
    _flatten_verl(tree)
    return key


def _toml_value(raw: str) -> Any:
    """A TOML value, or, where it is none, the text itself: `--set name=test` needs no quotes."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _flatten_verl(tree: dict[str, Any]) -> None:
    if isinstance(tree.get("verl"), dict):
        tree["verl"] = _flat(tree["verl"])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of all leaves; an empty table is a leaf."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(cast("Mapping[str, Any]", value), f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
