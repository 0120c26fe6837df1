"""The commands of `pathor1`, by what they are for. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

Arguments = argparse.Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command. `name` may have two words, such as "data render"; `run` returns the exit code."""

    name: str
    help: str
    example: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The option `--set` of every command that takes a recipe."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="another value for a key of the recipe, such as rl.group_size=8; may come several times",
    )
