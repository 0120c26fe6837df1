"""Commands of PathoCLIP: contrastive training, zero-shot classification, retrieval, linear probing, shards, leaks."""

from __future__ import annotations

import argparse
from pathlib import Path

from pathor1.commands import Arguments, Command, add_overrides


def _named(text: str) -> tuple[str, str]:
    """NAME=WHERE, or a WHERE that is its own name."""
    name, separator, where = text.partition("=")
    if not name or (separator and not where):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WHERE")
    return name, where or name


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe with a [stage_1] table")
    add_overrides(parser)


def _run_train(arguments: Arguments) -> int:
    from pathor1.contrastive import load
    from pathor1.storage import absolute_clip

    recipe = absolute_clip(load(arguments.recipe, arguments.overrides))
    from pathor1.clip.run import train  # heavy: after what can be wrong in the recipe

    train(recipe)
    return 0


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="an evaluation's recipe; docs/clip.md has its tables")
    parser.add_argument(
        "--model",
        type=_named,
        action="append",
        metavar="[NAME=]WHERE",
        help="a run's folder, a checkpoint, a folder that open_clip has saved, hf-hub:OWNER/NAME, or "
        "ARCHITECTURE@WEIGHTS, in place of the recipe's own models; may come several times",
    )
    add_overrides(parser)


def _run_evaluation(arguments: Arguments, what: str) -> int:
    from pathor1.contrastive import load_evaluation
    from pathor1.storage import absolute_clip_evaluation

    recipe = load_evaluation(arguments.recipe, arguments.overrides)
    if arguments.model:
        recipe = recipe.model_copy(update={"models": dict(arguments.model)})
    from pathor1.clip import evaluation  # heavy: after what can be wrong in the recipe

    recipe = absolute_clip_evaluation(recipe)
    print(evaluation.evaluate(recipe, what))
    from pathor1.report import clip as report

    print(report.write(Path(recipe.runs_dir) / recipe.name))
    return 0


def _run_zero_shot(arguments: Arguments) -> int:
    return _run_evaluation(arguments, "zero_shot")


def _run_retrieval(arguments: Arguments) -> int:
    return _run_evaluation(arguments, "retrieval")


def _run_probe(arguments: Arguments) -> int:
    return _run_evaluation(arguments, "probe")


def _add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="PATH", nargs="+", help="files of samples with captions, folders, or globs")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the shards: new, empty, or unfinished"
    )
    parser.add_argument("--pairs", type=int, default=5000, metavar="N", help="pairs in a shard (5000)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first shard (0)")
    parser.add_argument("--workers", type=int, default=2, help="processes that write shards side by side (2)")
    parser.add_argument(
        "--left-out", nargs="+", default=[], metavar="FILE", help="list samples to pass over, as `clip leaks` writes it"
    )


def _run_shards(arguments: Arguments) -> int:
    from pathor1.clip import leaks, shards

    made = shards.write(
        arguments.data,
        arguments.out,
        pairs=arguments.pairs,
        first=arguments.first,
        workers=arguments.workers,
        passed_over=leaks.listed(arguments.left_out),
    )
    print(f"{arguments.out}: {made.pairs:,} pairs in {len(made.shards):,} shards; {shards.MANIFEST} has their counts")
    if made.left_out:
        print(
            f"left out: {made.left_out:,} samples, each with its reason in {arguments.out / shards.LEFT_OUT}; the "
            f"first: {made.first_left_out}"
        )
    return 0


def _add_leaks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="PATH", nargs="+", help="files of training samples, folders, or globs")
    parser.add_argument("--against", nargs="+", required=True, metavar="PATH", help="the same of evaluation sets")
    parser.add_argument(
        "--distance",
        type=int,
        default=4,
        metavar="BITS",
        help="of the 64 bits of two perceptual hashes, so many may differ (4)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="list the samples here, for the recipe's data.left_out"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that hash pictures side by side (2)")


def _run_leaks(arguments: Arguments) -> int:
    from pathor1.clip import leaks

    found = leaks.find(arguments.data, arguments.against, distance=arguments.distance, workers=arguments.workers)
    print(leaks.told(found))
    if arguments.out is not None:
        leaks.write(found, arguments.out)
        print(f"{arguments.out} written; data.left_out = [{str(arguments.out)!r}] leaves them out of training")
    return 0


COMMANDS = (
    Command(
        name="clip train",
        help="Train a CLIP on pictures and captions, in one stage or two",
        example="pathor1 clip train ray_jobs/recipes/clip/pathoclip_b.toml --set cluster.nodes=2",
        add=_add_train,
        run=_run_train,
    ),
    Command(
        name="clip zero-shot",
        help="Classify pictures by descriptions of the classes",
        example="pathor1 clip zero-shot ray_jobs/recipes/clip/evaluation.toml --model mine=runs/pathoclip-b",
        add=_add_evaluation,
        run=_run_zero_shot,
    ),
    Command(
        name="clip retrieval",
        help="Find the captions of pictures, and the pictures of captions",
        example="pathor1 clip retrieval ray_jobs/recipes/clip/evaluation.toml --model mine=runs/pathoclip-b",
        add=_add_evaluation,
        run=_run_retrieval,
    ),
    Command(
        name="clip probe",
        help="Classify pictures by a linear probe on a few of each class",
        example="pathor1 clip probe ray_jobs/recipes/clip/evaluation.toml --model mine=runs/pathoclip-b",
        add=_add_evaluation,
        run=_run_probe,
    ),
    Command(
        name="clip shards",
        help="Write pictures and captions as WebDataset shards, with a manifest of counts",
        example="pathor1 clip shards data/quilt_1m/train --out shards/quilt_1m",
        add=_add_shards,
        run=_run_shards,
    ),
    Command(
        name="clip leaks",
        help="List training samples whose pictures are in evaluation sets",
        example="pathor1 clip leaks data/quilt_1m/train --against data/arch/train data/bmt/test --out leaks.jsonl",
        add=_add_leaks,
        run=_run_leaks,
    ),
)
