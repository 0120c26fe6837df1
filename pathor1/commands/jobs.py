"""Commands for runs as Ray jobs: submit, look at, follow, stop."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pathor1.commands import Arguments, Command, add_overrides
from pathor1.errors import RecipeError

if TYPE_CHECKING:
    from pathor1.service.jobs import Job, Submitted
    from pathor1.stage import RunRecipe

TIME = "%Y-%m-%d %H:%M:%S"


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the dashboard of the cluster's head (RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else "
        "http://127.0.0.1:8265)",
    )


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe, wherever it lies: it goes along with the job")
    parser.add_argument(
        "--stage",
        help="what runs: a module of ray_jobs (default: the recipe's, which is cpt, sft, clip or evaluate, else rl); "
        "of a recipe of curation, one of curation's stages",
    )
    _add_address(parser)
    add_overrides(parser)


def _run_submit(arguments: Arguments) -> int:
    recipe, stage = _to_submit(arguments)
    from pathor1.service import connection, jobs  # heavy: after what can be wrong in the recipe

    if stage.split(maxsplit=1)[0] not in jobs.stages():
        raise RecipeError(f"--stage {stage}: ray_jobs has no such module; it has {', '.join(jobs.stages())}")
    client = connection.connect(arguments.address)
    connection.refuse_other_release(client)
    job = jobs.submit(client, recipe, source=arguments.recipe, stage=stage)
    print(job.id)
    print(
        f"submitted to {client.shown}; `pathor1 logs --follow {job.id}`, `pathor1 status {job.id}`, "
        f"`pathor1 stop {job.id}`; run folder: {_where(job)}",
        file=sys.stderr,
    )
    return 0


def _to_submit(arguments: Arguments) -> tuple[Submitted, str]:
    """The recipe, and the stage that it is for. Raises RecipeError where it has nothing for that stage."""
    from pathor1 import benchmark
    from pathor1.curation import recipe as curation
    from pathor1.curation.stages import STAGES
    from pathor1.stage import load_run

    path, overrides, stage = arguments.recipe, arguments.overrides, arguments.stage
    if benchmark.is_benchmark(path):
        if stage not in (None, "evaluate"):
            raise RecipeError(f"{path}: is a benchmark's recipe, whose only stage is evaluate")
        return benchmark.load(path, overrides), "evaluate"
    if curation.is_curation(path, overrides):
        if stage not in STAGES:
            raise RecipeError(f"{path}: is of curation; --stage says which of {', '.join(STAGES)} it is")
        return curation.as_written(path, overrides), f"curate {stage}"
    return _run_to_submit(load_run(path, overrides), path, stage)


def _run_to_submit(recipe: RunRecipe, path: str, stage: str | None) -> tuple[RunRecipe, str]:
    from pathor1.contrastive import ClipRecipe
    from pathor1.rl.algorithms import spell_out
    from pathor1.stage import STAGES, StageRecipe

    if isinstance(recipe, ClipRecipe):
        if stage not in (None, "clip"):
            raise RecipeError(f"{path}: is of contrastive training, whose only stage is clip")
        return recipe, "clip"
    if isinstance(recipe, StageRecipe):
        if stage in STAGES and stage != recipe.stage:
            raise RecipeError(f"{path}: has no [{stage}] table; docs/recipes.md lists its keys")
        if stage not in (None, recipe.stage):
            raise RecipeError(f"{path}: is of a supervised stage, {recipe.stage}, and of no other")
        return recipe, recipe.stage
    missing = {"clip": "stage_1", "curate": "books", "cpt": "cpt"}
    if recipe.warm_start is None:
        missing["sft"] = "warm_start"
    if stage in missing:
        raise RecipeError(f"{path}: has no [{missing[stage]}] table; docs/ lists the keys of each kind of recipe")
    return spell_out(recipe), stage or "rl"


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="RUN|ID", nargs="?", help="a job's id, a run's name or its folder; none: all")
    _add_address(parser)


def _run_status(arguments: Arguments) -> int:
    folder = Path(arguments.what or "").absolute()
    own = _progress(folder) if arguments.what else []
    if own and not arguments.address:  # the folder is there, whether a cluster is or not
        print("\n".join([f"{folder}:", *own]))
        return 0
    from pathor1.service import connection, jobs

    client = connection.connect(arguments.address)
    if arguments.what is None:
        print("\n".join(_table(jobs.jobs(client))))
    else:
        print("\n".join(_page(jobs.find(client, folder.name if own else arguments.what))))
    return 0


def _table(found: list[Job]) -> list[str]:
    """One line a job, in columns."""
    rows = [("ID", "RUN", "STATE", "SINCE", "WHY")]
    rows += [(job.id, job.run or "-", job.state, job.since.strftime(TIME), job.why) for job in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]


def _page(job: Job) -> list[str]:
    """All about one job."""
    lines = [f"{job.id}: {job.state} since {job.since.strftime(TIME)}" + (f": {job.why}" if job.why else "")]
    lines += [f"  {name:<11} {text}" for name, text in job.description.items() if name != "folder"]
    if job.folder:
        lines.append(f"  {'folder':<11} {_where(job)}")
        lines += _progress(Path(job.folder)) if Path(job.folder).is_absolute() else []
    return lines


def _where(job: Job) -> str:
    return job.folder if Path(job.folder).is_absolute() else f"{job.folder}, below the nodes' PATHOR1_STORAGE"


def _progress(folder: Path) -> list[str]:
    """How far a run has come; nothing where this machine does not see its folder."""
    from pathor1.service.progress import progress

    now = progress(folder)
    if now is None:
        return []
    at = f", {now.at.strftime(TIME)}" if now.at else ""
    return [
        f"  {'step':<11} {now.step}/{now.steps}{at}",
        f"  {'checkpoint':<11} " + ("none" if now.checkpoint is None else f"of step {now.checkpoint}"),
    ]


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="ID", help="a job's id, or a run's name for its newest job")
    parser.add_argument("--follow", action="store_true", help="go on to the job's end: exit code 0 where it SUCCEEDED")
    _add_address(parser)


def _run_logs(arguments: Arguments) -> int:
    from pathor1.service import connection, jobs

    client = connection.connect(arguments.address)
    job = jobs.find(client, arguments.job)
    if not arguments.follow:
        print(client.get_job_logs(job.id), end="")
        return 0
    job = jobs.follow(client, job, sys.stdout)
    print(f"{job.id}: {job.state}" + (f": {job.why}" if job.why else ""), file=sys.stderr)
    return 0 if job.state == "SUCCEEDED" else 1


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="ID", help="a job's id, or a run's name for its newest job")
    _add_address(parser)


def _run_stop(arguments: Arguments) -> int:
    from pathor1.service import connection, jobs

    client = connection.connect(arguments.address)
    print("\n".join(_page(jobs.stop(client, jobs.find(client, arguments.job)))))
    return 0


COMMANDS = (
    Command(
        name="submit",
        help="Submit a run to a Ray cluster, as a job with this clone's code",
        example="pathor1 submit my/recipe.toml --address http://HEAD:8265 --set cluster.nodes=2",
        add=_add_submit,
        run=_run_submit,
    ),
    Command(
        name="status",
        help="Say what jobs there are on a cluster, or where one is: state, reason, step, checkpoint",
        example="pathor1 status\n  pathor1 status patho-r1-7b-grpo",
        add=_add_status,
        run=_run_status,
    ),
    Command(
        name="logs",
        help="Show the log of a job",
        example="pathor1 logs --follow patho-r1-7b-grpo",
        add=_add_logs,
        run=_run_logs,
    ),
    Command(
        name="stop",
        help="Stop a job and wait until it has: it writes a checkpoint before",
        example="pathor1 stop patho-r1-7b-grpo",
        add=_add_stop,
        run=_run_stop,
    ),
)
