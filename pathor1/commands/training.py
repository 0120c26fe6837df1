"""Commands that train."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pathor1.commands import Arguments, Command, add_overrides
from pathor1.errors import RecipeError, RunError, UserError

if TYPE_CHECKING:
    from pathor1.recipe import Recipe
    from pathor1.runs import RunFolder


def _add_cpt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe with a [cpt] table")
    add_overrides(parser)


def _run_cpt(arguments: Arguments) -> int:
    return _run_stage(arguments, "cpt")


def _add_sft(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a recipe with an [sft] table, or a run's with a [warm_start] table"
    )
    add_overrides(parser)


def _run_sft(arguments: Arguments) -> int:
    from pathor1.stage import is_stage

    if is_stage(arguments.recipe, arguments.overrides):
        return _run_stage(arguments, "sft")
    from pathor1.recipe import load
    from pathor1.storage import absolute

    recipe = absolute(load(arguments.recipe, arguments.overrides))
    if recipe.warm_start is None:
        raise RecipeError(f"{arguments.recipe}: has no [sft] and no [warm_start] table; docs/recipes.md lists both")
    from pathor1.supervised.run import warm_start  # heavy: after what can be wrong in the recipe

    warm_start(recipe)
    return 0


def _run_stage(arguments: Arguments, stage: str) -> int:
    from pathor1.checkpoints import model_of
    from pathor1.stage import load
    from pathor1.storage import absolute_stage

    recipe = absolute_stage(load(arguments.recipe, arguments.overrides))
    if recipe.stage != stage:
        other = recipe.stage
        raise RecipeError(f"{arguments.recipe}: has no [{stage}] table; `pathor1 {other}` runs its [{other}]")
    model = recipe.model.model_copy(update={"path": model_of(recipe.model.path)})
    from pathor1.supervised.run import train  # heavy: after what can be wrong in the recipe

    _report(train(recipe.model_copy(update={"model": model})))
    return 0


def _add_rl(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("recipe", metavar="RECIPE", nargs="?", help="the recipe of a new run")
    what.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, after its last checkpoint")
    add_overrides(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the recipe with every value, and verl's config, as JSON, and stop"
    )


def _run_rl(arguments: Arguments) -> int:
    from pathor1 import attempts
    from pathor1.recipe import load
    from pathor1.rl import run
    from pathor1.rl.algorithms import spell_out
    from pathor1.storage import absolute

    resumed = arguments.resume is not None
    recipe = recipe_of_run(arguments) if resumed else absolute(load(arguments.recipe, arguments.overrides))
    recipe = _begun_with(spell_out(recipe))
    if arguments.dry_run:
        print(run.dry_run(recipe))
        return 0
    if attempts.number():
        run.train(recipe)
        return 0
    return _in_attempts(arguments, recipe)


def _begun_with(recipe: Recipe) -> Recipe:
    """The recipe with a model's folder where it names the run of the stage before."""
    from pathor1.checkpoints import model_of

    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": model_of(recipe.model.path)})})


def _in_attempts(arguments: Arguments, recipe: Recipe) -> int:
    """Runs this command again as a child process, whose failures are not this one's."""
    from pathor1 import attempts
    from pathor1.alive import alone
    from pathor1.ray_cluster import joins_a_cluster
    from pathor1.rl import starts

    folder = starts.folder(recipe).path
    starts.check(recipe)
    with alone(folder):
        starts.take_newest(recipe)
        if (done := starts.done(recipe)) is not None:
            if arguments.resume is not None:
                raise RunError(f"{folder}: {done.what}; for more, --set {done.key}=NUMBER")
            print(f"{recipe.name}: {done.what} already, in {folder}", flush=True)
            return 0
        what = ["--resume", arguments.resume] if arguments.resume is not None else [arguments.recipe]
        options = [text for override in arguments.overrides for text in ("--set", override)]
        try:
            code = attempts.run(
                ["pathor1.attempt", *what, *options],
                name=recipe.name,
                max_restarts=recipe.cluster.max_restarts,
                stop_grace=recipe.cluster.stop_grace,
                takes_in=not joins_a_cluster(),
            )
        except RunError:
            _report(starts.folder(recipe))
            raise
        if code == 0:
            _report(starts.folder(recipe))
        return code


def _report(folder: RunFolder) -> None:
    """Writes the page of a run that has ended; what is wrong with the page is nothing wrong with the run."""
    from pathor1.report import page

    if not folder.metrics.exists():
        return
    try:
        print(f"{folder.path.name}: {page.write(folder.path)}", flush=True)
    except UserError as error:
        print(f"{folder.path.name}: no report: {error}", flush=True)


def _add_preflight(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe for `pathor1 rl`")
    add_overrides(parser)


def _run_preflight(arguments: Arguments) -> int:
    from pathor1.data.sources import sources
    from pathor1.model.check import check
    from pathor1.ray_cluster import choose_accelerator
    from pathor1.recipe import load
    from pathor1.rl import preflight
    from pathor1.storage import absolute

    recipe = _begun_with(absolute(load(arguments.recipe, arguments.overrides)))
    wanted = recipe.cluster.accelerator
    check(recipe.model.path)
    found = sources(recipe.data)
    lines = preflight.look(recipe, found, accelerator=choose_accelerator(recipe) if wanted == "auto" else wanted)
    print(preflight.table(lines))
    if failing := [line.what for line in lines if line.verdict == "fails"]:
        raise RunError(f"the run cannot fit: {', '.join(failing)}; what to do stands above")
    return 0


def recipe_of_run(arguments: Arguments) -> Recipe:
    """The recipe that a run folder keeps. Where the folder lies counts, not where it lay: it may have been moved."""
    from pathor1.recipe import load
    from pathor1.rl.starts import FIXED
    from pathor1.storage import absolute, root

    folder = (root() or Path.cwd()) / Path(arguments.resume).expanduser()
    if not (folder / "recipe.toml").is_file():
        raise RunError(f"{folder}: not the folder of a run, it has no recipe.toml; runs lie in the recipe's runs_dir")
    changed = {override.partition("=")[0].strip() for override in arguments.overrides}
    if fixed := sorted(changed & set(FIXED)):
        raise RunError(
            f"--set {fixed[0]}: a run keeps its own; start another run from a checkpoint's huggingface folder"
        )
    place = [f"runs_dir={json.dumps(str(folder.parent))}", f"name={json.dumps(folder.name)}"]
    return absolute(load(folder / "recipe.toml", [*arguments.overrides, *place]))


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--algorithm", choices=("grpo", "dapo"), default="grpo", help="what it is trained by (grpo)")
    parser.add_argument("--out", type=Path, help="folder of the demonstration (runs/demo; by DAPO runs/demo-dapo)")
    parser.add_argument("--seed", type=int, default=0, help="of data, models and training (0)")
    add_overrides(parser)


def _run_demo(arguments: Arguments) -> int:
    from pathor1.demo import run

    run(algorithm=arguments.algorithm, seed=arguments.seed, out=arguments.out, overrides=arguments.overrides)
    return 0


COMMANDS = (
    Command(
        name="cpt",
        help="Continue a model's pretraining on pictures and their captions",
        example="pathor1 cpt ray_jobs/recipes/stages/patho_r1_3b_cpt.toml --set cluster.nodes=4",
        add=_add_cpt,
        run=_run_cpt,
    ),
    Command(
        name="sft",
        help="Fine-tune a model on answers that reason, or run a recipe's [warm_start]",
        example="pathor1 sft ray_jobs/recipes/stages/patho_r1_3b_sft.toml --set model.path=runs/patho-r1-3b-cpt\n"
        "  pathor1 sft ray_jobs/recipes/demo_grpo.toml --set warm_start.steps=200",
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
        name="preflight",
        help="Say whether an RL run would fit: lengths, memory, disk. `pathor1 rl` asks it first",
        example="pathor1 preflight ray_jobs/recipes/patho_r1_7b_grpo.toml --set data.max_pixels=1003520",
        add=_add_preflight,
        run=_run_preflight,
    ),
    Command(
        name="demo",
        help="Show it all on two CPU cores: data, a small model, warm start, GRPO or DAPO, evaluation, report",
        example="pathor1 demo --seed 1 --out runs/demo-1\n  pathor1 demo --algorithm dapo",
        add=_add_demo,
        run=_run_demo,
    ),
)
