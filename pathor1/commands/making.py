"""Commands that make what a run needs to be tried: sets of samples, a small model."""

from __future__ import annotations

import argparse
from pathlib import Path

from pathor1.commands import Arguments, Command


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
    parser.add_argument(
        "--disagreement",
        type=float,
        default=0.0,
        help="0 to 1: how often the split warm_start calls one of the six disputed classes by another's name (0)",
    )

    parser.add_argument("--captions", action="store_true", help="captions of what was drawn, in place of questions")


def _run_render(arguments: Arguments) -> int:
    from pathor1.data.rendered import render

    files = render(
        arguments.out,
        seed=arguments.seed,
        counts=dict(arguments.counts),
        size=arguments.size,
        options=tuple(arguments.options),
        difficulty=arguments.difficulty,
        disagreement=arguments.disagreement,
        captions=arguments.captions,
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


def _add_exercises(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="FILE", type=Path, nargs="+", help="files of multiple-choice samples")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file of exercises")
    parser.add_argument("--seed", type=int, default=0, help="of the options that are asked for (0)")


def _run_exercises(arguments: Arguments) -> int:
    from pathor1.data import exercises

    count = exercises.make(arguments.data, arguments.out, seed=arguments.seed)
    print(f"{arguments.out}: {count} exercises")
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


COMMANDS = (
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
        name="data exercises",
        help="Make exercises in reading options from multiple-choice samples, without their pictures",
        example="pathor1 data exercises data/rendered/warm_start.parquet --out data/exercises.parquet",
        add=_add_exercises,
        run=_run_exercises,
    ),
    Command(
        name="model tiny",
        help="Make a small Qwen2.5-VL with random weights",
        example="pathor1 model tiny --out models/tiny --data data/rendered/train.parquet",
        add=_add_tiny,
        run=_run_tiny,
    ),
)
