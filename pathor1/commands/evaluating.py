"""The command that says what models are worth: those of a run, or those of a benchmark's recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pathor1.commands import Arguments, Command, add_overrides

if TYPE_CHECKING:
    from pathor1.benchmark import BenchmarkRecipe
    from pathor1.recipe import Recipe


def _named(text: str) -> tuple[str, str]:
    """NAME=PATH, or a PATH that is its own name."""
    name, separator, path = text.partition("=")
    if not name or (separator and not path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path or name


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a benchmark's recipe, or that of a run, whose data.test is used"
    )
    parser.add_argument(
        "--model",
        type=_named,
        action="append",
        metavar="[NAME=]WHERE",
        help="a run's folder, a checkpoint, a model folder, a hub's name or a server's URL, in place of the recipe's "
        "own models; may come several times",
    )
    add_overrides(parser)


def _run_evaluate(arguments: Arguments) -> int:
    from pathor1.benchmark import is_benchmark

    return (_benchmark if is_benchmark(arguments.recipe) else _run)(arguments)


def _benchmark(arguments: Arguments) -> int:
    from pathor1 import files
    from pathor1.benchmark import load
    from pathor1.evaluation.published import named
    from pathor1.evaluation.run import evaluate
    from pathor1.evaluation.tables import paper
    from pathor1.recipe import to_toml
    from pathor1.storage import absolute_benchmark

    recipe = load(arguments.recipe, arguments.overrides)
    published = None if recipe.benchmark.published is None else named(recipe.benchmark.published)
    if arguments.model:
        recipe = recipe.model_copy(update={"models": dict(arguments.model)})
    recipe = _with_models(absolute_benchmark(recipe))
    results = evaluate(recipe, file="results.json")
    text = paper(results, title=published.title if published else recipe.name, published=published)
    folder = Path(recipe.runs_dir) / recipe.name / "eval"
    files.write(folder / "recipe.toml", to_toml(recipe))
    files.write(folder / "results.txt", text + "\n")
    print(text)
    return 0


def _run(arguments: Arguments) -> int:
    from pathor1.benchmark import of_run
    from pathor1.evaluation.run import evaluate
    from pathor1.evaluation.tables import stages
    from pathor1.ray_cluster import choose_accelerator
    from pathor1.recipe import load
    from pathor1.storage import absolute

    recipe = absolute(load(arguments.recipe, arguments.overrides))
    models = dict(arguments.model) if arguments.model else _stages(recipe)
    file = "models.json" if arguments.model else "held_out.json"  # the run's own results stay
    benchmark = _with_models(of_run(recipe, models))
    if recipe.cluster.accelerator != "auto":  # loads torch, which takes seconds
        choose_accelerator(recipe)
    results = evaluate(benchmark, file=file)
    print(stages(results))
    return 0


def _with_models(recipe: BenchmarkRecipe) -> BenchmarkRecipe:
    from pathor1.checkpoints import model_of

    return recipe.model_copy(update={"models": {name: model_of(where) for name, where in recipe.models.items()}})


def _stages(recipe: Recipe) -> dict[str, str]:
    """The models of a run by stage, those that there are: base, warm_start, and final, its last checkpoint."""
    from pathor1 import checkpoints
    from pathor1.runs import RunFolder

    first = _chain(recipe.model.path)
    if recipe.warm_start is not None:
        first = {**_chain(recipe.warm_start.model), "warm_start": recipe.model.path}
    last = checkpoints.latest(RunFolder(Path(recipe.runs_dir) / recipe.name).checkpoints)
    return first if last is None else {**first, "final": str(last / "huggingface")}


def _chain(model: str) -> dict[str, str]:
    """A model by the stage that made it, and before it what that stage began with: base, cpt, sft.

    What is no run's, or is not there any more, is where it ends.
    """
    from pathor1.checkpoints import model_of
    from pathor1.runs import RunFolder
    from pathor1.stage import is_stage, load

    found = model_of(model)
    run = RunFolder(Path(found).parents[2]) if Path(found).is_absolute() else None  # of checkpoints/step-N/huggingface
    if run is None or Path(found).parents[1] != run.checkpoints or not (run.recipe.is_file() and is_stage(run.recipe)):
        return {"base": found}
    recipe = load(run.recipe)
    before = recipe.model.path
    return {**(_chain(before) if Path(before).exists() else {}), recipe.stage: found}


COMMANDS = (
    Command(
        name="evaluate",
        help="Say how often models are right, on a run's held-out questions or on a benchmark, with intervals",
        example="pathor1 evaluate runs/demo/recipe.toml\n"
        "  pathor1 evaluate ray_jobs/recipes/benchmarks/pathmmu_val.toml --model mine=runs/mine\n"
        "  pathor1 evaluate RECIPE --model served=http://localhost:8000/v1#NAME",
        add=_add_evaluate,
        run=_run_evaluate,
    ),
)
