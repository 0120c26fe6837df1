"""Commands that show something: the environment, a model's answers, a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pathor1.commands import Arguments, Command, add_overrides

if TYPE_CHECKING:
    from pathor1.recipe import Recipe


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _run_doctor(arguments: Arguments) -> int:
    from pathor1.backends import doctor

    return doctor.main()


def _named(text: str) -> tuple[str, str]:
    """NAME=PATH, or a PATH that is its own name."""
    name, separator, path = text.partition("=")
    if not name or (separator and not path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path or name


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe, or the recipe.toml of a run: its data.test is used")
    parser.add_argument(
        "--model",
        type=_named,
        action="append",
        metavar="[NAME=]PATH",
        help="a model folder or a hub's name, in place of the recipe's own models; may come several times",
    )
    add_overrides(parser)


def _run_evaluate(arguments: Arguments) -> int:
    from pathor1.evaluation.run import evaluate, table
    from pathor1.recipe import load
    from pathor1.storage import absolute

    recipe = absolute(load(arguments.recipe, arguments.overrides))
    if arguments.model:
        results = evaluate(recipe, dict(arguments.model), file="models.json")  # the run's own results stay
    else:
        results = evaluate(recipe, _stages(recipe))
    print(table(results))
    return 0


def _stages(recipe: Recipe) -> dict[str, str]:
    """The models of a run by stage, those that there are: base, warm_start, and final, its last checkpoint."""
    from pathor1.rl import checkpoints
    from pathor1.runs import RunFolder

    first = {"base": recipe.model.path}
    if recipe.warm_start is not None:
        first = {"base": recipe.warm_start.model, "warm_start": recipe.model.path}
    last = checkpoints.latest(RunFolder(Path(recipe.runs_dir) / recipe.name).checkpoints)
    return first if last is None else {**first, "final": str(last / "huggingface")}


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help=".jsonl or .parquet with the columns text and answer")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="longest answer, for the length part")
    parser.add_argument("--cache-length", type=int, metavar="TOKENS", help="where its punishment begins, below that")
    parser.add_argument("--function", metavar="FUNCTION", help="in the place of accuracy, as rl.reward.function")


def _run_score(arguments: Arguments) -> int:
    from pathor1.score import score_file

    score_file(
        arguments.file,
        out=sys.stdout,
        as_json=arguments.json,
        max_length=arguments.max_length,
        cache_length=arguments.cache_length,
        function=arguments.function,
    )
    return 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="the folder of a run, finished or not")
    parser.add_argument("--against", metavar="OTHER", type=Path, help="the folder of a run to put beside it")


def _run_report(arguments: Arguments) -> int:
    from pathor1.report import page

    print(page.write(arguments.run_folder, against=arguments.against))
    return 0


COMMANDS = (
    Command(
        name="doctor",
        help="Say what is installed, what a run would use, and what is wrong",
        example="pathor1 doctor",
        add=_no_arguments,
        run=_run_doctor,
    ),
    Command(
        name="evaluate",
        help="Say how often models are right on held-out questions, with confidence intervals",
        example="pathor1 evaluate runs/demo/recipe.toml\n  pathor1 evaluate RECIPE --model mine=models/mine",
        add=_add_evaluate,
        run=_run_evaluate,
    ),
    Command(
        name="score",
        help="Score a file of answers with the rewards: every part, and why",
        example="pathor1 score runs/demo/ledger/step-000040.parquet",
        add=_add_score,
        run=_run_score,
    ),
    Command(
        name="report",
        help="Write the report page of a run: curves, and answers with their pictures",
        example="pathor1 report runs/demo\n  pathor1 report runs/demo-dapo --against runs/demo",
        add=_add_report,
        run=_run_report,
    ),
)
