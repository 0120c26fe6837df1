"""Commands for what a run has kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from pathor1.commands import Arguments, Command
from pathor1.errors import RunError


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="the folder of a run, finished or not")
    parser.add_argument("--to", metavar="DIR", type=Path, required=True, help="the folder to write, a new one")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step, in place of the last one")
    which.add_argument("--best", action="store_true", help="the best checkpoint, by the recipe's rl.best_by")


def _run_export(arguments: Arguments) -> int:
    from pathor1.contrastive import ClipRecipe
    from pathor1.rl.export import choose, export
    from pathor1.runs import RunFolder
    from pathor1.stage import load_run

    folder = RunFolder(arguments.run_folder)
    if not folder.recipe.is_file():
        raise RunError(
            f"{folder.path}: not the folder of a run, it has no recipe.toml; runs lie in the recipe's runs_dir"
        )
    recipe = load_run(folder.recipe)
    checkpoint = choose(folder.checkpoints, step=arguments.step, best=arguments.best)
    # open_clip loads weights as float32, and has no word for their type.
    dtype = "float32" if isinstance(recipe, ClipRecipe) else recipe.model.dtype
    export(checkpoint, arguments.to, dtype=dtype)
    print(f"{arguments.to}: the model of {checkpoint.name}, in {dtype}")
    return 0


COMMANDS = (
    Command(
        name="export",
        help="Write the model of a run's checkpoint as a Hugging Face folder, for transformers and vLLM",
        example="pathor1 export runs/demo --to models/mine\n  pathor1 export runs/demo --to models/best --best",
        add=_add_export,
        run=_run_export,
    ),
)
