"""The `pathor1` command: parse first, import later, so that `--help` answers at once.

Exit codes: 0 done; 2 the user's input is wrong, which is one line on stderr and no traceback; 130 stopped by Ctrl-C;
1 anything else.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pathor1.errors import RecipeError, RunError, UserError

if TYPE_CHECKING:
    from pathor1.recipe import Recipe

Arguments = argparse.Namespace
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EROFS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command. `name` may have two words, such as "data render"."""

    name: str
    help: str
    example: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


class Parser(argparse.ArgumentParser):
    """argparse with mistakes in one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pathor1: {message}; see `{self.prog} --help`\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parsed = build_parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; what is still buffered goes nowhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"pathor1: {line}", file=sys.stderr)
        return 2


def explain(error: BaseException) -> str | None:
    """One line where the user's input, or a full disk, is behind an error; None where a traceback says more."""
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return " ".join(str(cause).splitlines())
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            where = cause.filename or "while writing"
            return f"disk full: {where}; free some space and run this again (`pathor1 rl --resume RUN` goes on)"
        if isinstance(cause, OSError) and cause.errno in NOT_ALLOWED and cause.filename:
            return f"{cause.filename}: {cause.strerror}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from. Ray hands on what happened in another process as `cause`."""
    while error is not None:
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error
        yield error
        error = error.__cause__


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="pathor1",
        description="Trains Patho-R1, a pathology vision-language model that reasons before it answers.",
        epilog="Every command has its own --help, with an example. Exit codes: 0 done, 2 wrong input, 1 anything else.",
    )
    top = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    groups = {"": top}
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        if group not in groups:
            text = GROUPS[group]
            groups[group] = top.add_parser(group, help=text, description=f"{text}.").add_subparsers(
                metavar="COMMAND", required=True, dest=f"{group}_command"
            )
        child = groups[group].add_parser(
            name,
            help=command.help,
            description=f"{command.help}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add(child)
        child.set_defaults(run=command.run)
    return parser


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _run_doctor(arguments: Arguments) -> int:
    from pathor1.backends import doctor

    return doctor.main()


def _counts(text: str) -> tuple[str, int]:
    split, separator, count = text.partition("=")
    if not separator or not split or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not SPLIT=NUMBER, such as train=4000")
    return split, int(count)


def _add_set(parser: argparse.ArgumentParser, *, size: int) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for SPLIT.parquet")
    parser.add_argument(
        "--counts",
        type=_counts,
        nargs="+",
        metavar="SPLIT=N",
        default=[("train", 4000), ("test", 400)],
        help="questions of each split (train=4000 test=400)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same files (0)")
    parser.add_argument("--size", type=int, default=size, help=f"pixels of a picture's side ({size})")


def _add_render(parser: argparse.ArgumentParser) -> None:
    _add_set(parser, size=56)
    parser.add_argument(
        "--options", type=int, nargs=2, metavar=("FEWEST", "MOST"), default=(4, 4), help="options a question (4 4)"
    )
    parser.add_argument("--difficulty", type=float, default=0.3, help="0 to 1: how far the classes overlap (0.3)")


def _run_render(arguments: Arguments) -> int:
    from pathor1.data.rendered import render

    files = render(
        arguments.out,
        seed=arguments.seed,
        counts=dict(arguments.counts),
        size=arguments.size,
        options=tuple(arguments.options),
        difficulty=arguments.difficulty,
    )
    return _print_files(files, arguments)


def _add_ihc(parser: argparse.ArgumentParser) -> None:
    _add_set(parser, size=56)


def _run_ihc(arguments: Arguments) -> int:
    from pathor1.data.ihc import tiles

    files = tiles(arguments.out, seed=arguments.seed, counts=dict(arguments.counts), size=arguments.size)
    return _print_files(files, arguments)


def _print_files(files: dict[str, Path], arguments: Arguments) -> int:
    for split, path in files.items():
        print(f"{path}: {dict(arguments.counts)[split]} questions")
    return 0


def _add_tiny(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="the model folder")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="sample files whose texts the tokenizer is trained on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (0)")
    parser.add_argument("--hidden", type=int, default=128, help="width of the language model, a multiple of 64 (128)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the language model (2)")


def _run_tiny(arguments: Arguments) -> int:
    from pathor1.model import tiny

    parameters = tiny.make(
        arguments.out, arguments.data, seed=arguments.seed, hidden=arguments.hidden, layers=arguments.layers
    )
    print(f"{arguments.out}: a Qwen2.5-VL of {parameters:,} parameters, not yet trained")
    return 0


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="another value for a key of the recipe, such as rl.group_size=8; may come several times",
    )


def _add_sft(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe with a [warm_start] table")
    _add_overrides(parser)


def _run_sft(arguments: Arguments) -> int:
    from pathor1.recipe import load
    from pathor1.storage import absolute

    recipe = absolute(load(arguments.recipe, arguments.overrides))
    if recipe.warm_start is None:
        raise RecipeError(f"{arguments.recipe}: has no [warm_start] table; docs/recipes.md lists its keys")
    from pathor1.supervised.run import train  # heavy: after what can be wrong in the recipe

    train(recipe)
    return 0


def _add_rl(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("recipe", metavar="RECIPE", nargs="?", help="the recipe of a new run")
    what.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, after its last checkpoint")
    _add_overrides(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the recipe with every value, and verl's config, as JSON, and stop"
    )


def _run_rl(arguments: Arguments) -> int:
    from pathor1.recipe import load
    from pathor1.rl.algorithms import spell_out
    from pathor1.storage import absolute

    resumed = arguments.resume is not None
    recipe = _recipe_of_run(arguments) if resumed else absolute(load(arguments.recipe, arguments.overrides))
    recipe = spell_out(recipe)
    from pathor1.rl import run  # heavy: after what can be wrong in the recipe

    if arguments.dry_run:
        print(run.dry_run(recipe))
    else:
        run.train(recipe, resume=resumed)
    return 0


def _recipe_of_run(arguments: Arguments) -> Recipe:
    """The recipe that a run folder keeps. Where the folder lies counts, not where it lay: it may have been moved."""
    from pathor1.recipe import load
    from pathor1.storage import absolute, root

    folder = (root() or Path.cwd()) / Path(arguments.resume).expanduser()
    if not (folder / "recipe.toml").is_file():
        raise RunError(f"{folder}: not the folder of a run, it has no recipe.toml; runs lie in the recipe's runs_dir")
    recipe = absolute(load(folder / "recipe.toml", arguments.overrides))
    return recipe.model_copy(update={"runs_dir": str(folder.parent), "name": folder.name})


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help=".jsonl or .parquet with the columns text and answer")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="longest answer, for the length part")
    parser.add_argument("--cache-length", type=int, metavar="TOKENS", help="where its punishment begins, below that")


def _run_score(arguments: Arguments) -> int:
    from pathor1.score import score_file

    score_file(
        arguments.file,
        out=sys.stdout,
        as_json=arguments.json,
        max_length=arguments.max_length,
        cache_length=arguments.cache_length,
    )
    return 0


GROUPS = {"data": "Make sets of samples to try things on", "model": "Make models to try things on"}
COMMANDS = (
    Command(
        name="doctor",
        help="Say what is installed, what a run would use, and what is wrong",
        example="pathor1 doctor",
        add=_no_arguments,
        run=_run_doctor,
    ),
    Command(
        name="data render",
        help="Make questions on drawn, pathology-like pictures of five subfields",
        example="pathor1 data render --out data/rendered --counts train=4000 test=400 --seed 1",
        add=_add_render,
        run=_run_render,
    ),
    Command(
        name="data ihc",
        help="Make questions on tiles of a real immunohistochemistry section",
        example="pathor1 data ihc --out data/ihc --counts train=1000 test=200",
        add=_add_ihc,
        run=_run_ihc,
    ),
    Command(
        name="model tiny",
        help="Make a small Qwen2.5-VL with random weights",
        example="pathor1 model tiny --out models/tiny --data data/rendered/train.parquet",
        add=_add_tiny,
        run=_run_tiny,
    ),
    Command(
        name="sft",
        help="Run the supervised stage of a recipe, its [warm_start]",
        example="pathor1 sft ray_jobs/recipes/demo_grpo.toml --set warm_start.steps=200",
        add=_add_sft,
        run=_run_sft,
    ),
    Command(
        name="rl",
        help="Train by reinforcement learning, GRPO or DAPO",
        example="pathor1 rl ray_jobs/recipes/demo_grpo.toml --set rl.group_size=16\n  pathor1 rl --resume runs/demo",
        add=_add_rl,
        run=_run_rl,
    ),
    Command(
        name="score",
        help="Score a file of answers with the rewards: every part, and why",
        example="pathor1 score runs/demo/ledger/step-000040.parquet",
        add=_add_score,
        run=_run_score,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
