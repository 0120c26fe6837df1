"""The command that turns textbooks into samples, a stage at a time."""

from __future__ import annotations

import argparse

from pathor1.commands import Arguments, Command, add_overrides
from pathor1.curation.stages import STAGES


def _add_curate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", metavar="STAGE", choices=list(STAGES), help=", ".join(STAGES))
    parser.add_argument("recipe", metavar="RECIPE", help="docs/curation-recipe.md lists its keys")
    parser.add_argument(
        "--redo", action="store_true", help="make a stage anew that was made with other settings or tools"
    )
    add_overrides(parser)


def _run_curate(arguments: Arguments) -> int:
    from pathor1.curation.made import REVIEW
    from pathor1.curation.recipe import load
    from pathor1.curation.running import run

    made = run(arguments.stage, load(arguments.recipe, arguments.overrides), redo=arguments.redo)
    print(f"{made.folder}: {made.rows:,} rows of {made.items:,} items")
    for reason, count in made.dropped.items():
        print(f"dropped: {count:,}: {reason}")
    print(f"to look at: {made.folder / REVIEW}")
    return 0


COMMANDS = (
    Command(
        name="curate",
        help="Turn textbooks into samples, one stage after the other: " + ", ".join(STAGES),
        example="pathor1 curate pages ray_jobs/recipes/curation/textbooks.toml",
        add=_add_curate,
        run=_run_curate,
    ),
)
