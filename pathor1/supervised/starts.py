"""May a supervised stage start, and from where? Asked before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from pathor1 import checkpoints
from pathor1.data.first_look import first_look
from pathor1.data.sources import sources
from pathor1.data.stream import Source, refuse_other
from pathor1.errors import RecipeError, RunError
from pathor1.model.check import check as check_model
from pathor1.recipe import Recipe, Samples
from pathor1.runs import RunFolder
from pathor1.same_run import has_begun, refuse_changes
from pathor1.samples import TASKS, Task
from pathor1.stage import StageRecipe, load
from pathor1.storage import absolute_stage
from pathor1.tracking import trackers
from pathor1.training import WarmStart

# A folder that bears this file was made by a supervised stage, and may be replaced by one.
MARK = ".made-by-pathor1"
# What a stage's checkpoint and its place in the stream hang on.
FIXED = (
    "stage",
    "seed",
    "tasks",
    "data.train",
    "data.shuffle",
    "model.path",
    "training.batch_size",
    "training.freeze",
    "training.lora",
    "training.zero_stage",
)


def check_warm_start(recipe: Recipe, stage: WarmStart) -> None:
    """Raises UserError for whatever in the input makes a run's warm start impossible."""
    if Path(stage.model).expanduser().absolute() == Path(recipe.model.path):
        raise RecipeError(
            f"warm_start.model and model.path are the same folder, {stage.model}: the warm start writes the second"
        )
    check_model(stage.model)
    _first_look(sources(warm_start_data(recipe, stage)), TASKS, recipe.data)
    if RunFolder(Path(recipe.runs_dir) / recipe.name).metrics.exists():
        raise RunError(f"{recipe.runs_dir}/{recipe.name}: has begun RL; give this warm start another name")
    target = Path(recipe.model.path)
    if target.exists() and not (target / MARK).is_file():
        raise RunError(
            f"{target}: is there already and was not made by a warm start, which would replace it; set model.path to a "
            "folder that is not there yet"
        )


def warm_start_data(recipe: Recipe, stage: WarmStart) -> Samples:
    """The samples of a warm start: its own files, in the run's sizes, in an order of their own in every epoch."""
    return recipe.data.model_copy(update={"train": stage.data, "weights": [], "shuffle": True})


def check(recipe: StageRecipe) -> int:
    """The step that a stage goes on behind, 0 = from its beginning.

    Its model is a folder by now (`pathor1.checkpoints.model_of`). Raises UserError for whatever in the input makes the
    stage impossible: also for a folder that is another run's, and files that are not those that it was begun with.
    """
    check_model(recipe.model.path)
    trackers.check(recipe.trackers)
    folder = RunFolder(Path(recipe.runs_dir) / recipe.name)
    _refuse_other_run(recipe, folder)
    found = sources(recipe.data)
    last = checkpoints.latest(folder.checkpoints)
    step = 0
    if last is not None:
        manifest = checkpoints.read(last)
        refuse_other(found, manifest.stream)
        step = manifest.step
    _first_look(found, recipe.tasks, recipe.data)
    return step


def _first_look(found: list[Source], tasks: tuple[Task, ...], data: Samples) -> None:
    paths = list(dict.fromkeys(group.file for source in found for group in source.groups))
    first_look(paths, tasks=tasks, min_pixels=data.min_pixels, max_pixels=data.max_pixels)


def _refuse_other_run(recipe: StageRecipe, folder: RunFolder) -> None:
    """Raises RunError where the folder holds a run that differs in what a run keeps."""
    if has_begun(folder):
        begun = absolute_stage(load(folder.recipe))
        refuse_changes(str(folder.path), begun, recipe, FIXED, training=recipe.stage)
