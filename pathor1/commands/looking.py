"""Commands that show something: the environment, a model's answers, a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pathor1.commands import Arguments, Command


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
    named: dict[str, Any] = {"type": _named, "action": "append", "required": True, "metavar": "[NAME=]PATH"}
    parser.add_argument("--model", **named, help="a model folder or a hub's name; may come several times")
    parser.add_argument("--data", **named, help="a file of samples; may come several times")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the results go, beside the terminal")
    parser.add_argument(
        "--system-prompt", choices=("chain_of_thought", "chain_of_draft", "none"), default="chain_of_thought"
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", default=2048, help="longest answer in tokens (2048)")
    parser.add_argument("--samples", type=int, metavar="N", help="the first N questions of each file (all)")
    parser.add_argument(
        "--min-pixels", type=int, metavar="N", default=3136, help="smaller pictures are enlarged to this (3136)"
    )
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", default=501760, help="larger ones are reduced to this (501760)"
    )
    parser.add_argument(
        "--shuffle-images",
        action="store_true",
        help="give every question the pictures of another: what is still right was not seen in the pictures",
    )


def _run_evaluate(arguments: Arguments) -> int:
    from pathor1.evaluation.run import evaluate

    evaluate(
        models=dict(arguments.model),
        data={name: Path(path) for name, path in arguments.data},
        out=arguments.out,
        system_prompt=arguments.system_prompt,
        max_new_tokens=arguments.max_new_tokens,
        samples=arguments.samples,
        min_pixels=arguments.min_pixels,
        max_pixels=arguments.max_pixels,
        shuffle_images=arguments.shuffle_images,
    )
    return 0


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


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="the folder of a run, finished or not")


def _run_report(arguments: Arguments) -> int:
    from pathor1.report import page

    print(page.write(arguments.run_folder))
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
        example="pathor1 evaluate --model runs/demo/models/warm_start --data runs/demo/data/ihc/test.parquet",
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
        example="pathor1 report runs/demo",
        add=_add_report,
        run=_run_report,
    ),
)
