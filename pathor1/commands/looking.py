"""Commands that show something: the environment, what answers are worth, a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pathor1.commands import Arguments, Command


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _run_doctor(arguments: Arguments) -> int:
    from pathor1.backends import doctor

    return doctor.main()


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
    parser.add_argument(
        "run_folder",
        metavar="RUN",
        type=Path,
        help="the folder of a run, finished or not, or of an evaluation of CLIP models",
    )


def _run_report(arguments: Arguments) -> int:
    from pathor1.report import clip, page

    write = clip.write if clip.is_evaluation(arguments.run_folder) else page.write
    print(write(arguments.run_folder))
    return 0


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folders", metavar="RUN", type=Path, nargs="+", help="folders of runs, finished or not")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where the page goes (compare.html in the first RUN)")


def _run_compare(arguments: Arguments) -> int:
    from pathor1.report import comparison

    page, text = comparison.write(arguments.run_folders, out=arguments.out)
    print(text)
    print(page)
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
        name="score",
        help="Score a file of answers with the rewards: every part, and why",
        example="pathor1 score runs/demo/ledger/step-000040.parquet",
        add=_add_score,
        run=_run_score,
    ),
    Command(
        name="report",
        help="Write the report page of a run: curves, and answers with their pictures",
        example="pathor1 report runs/demo",
        add=_add_report,
        run=_run_report,
    ),
    Command(
        name="compare",
        help="Put runs side by side: tests on the same questions, curves, recipes; a table here, and a page",
        example="pathor1 compare runs/demo runs/demo-dapo",
        add=_add_compare,
        run=_run_compare,
    ),
)
