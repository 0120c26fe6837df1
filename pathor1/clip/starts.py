"""May contrastive training start, and from where? Asked before Ray is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pathor1 import checkpoints
from pathor1.contrastive import ANY_SIZE, ClipRecipe, load
from pathor1.data.first_look import first_look
from pathor1.data.sources import sources
from pathor1.data.stream import Source, refuse_other
from pathor1.errors import DataError
from pathor1.runs import RunFolder
from pathor1.same_run import has_begun, refuse_changes
from pathor1.storage import absolute_clip
from pathor1.tracking import trackers

# What a run's checkpoints and its place in the stream hang on.
FIXED = (
    "seed",
    "model.architecture",
    "model.weights",
    "data.shuffle",
    "data.crop",
    "data.left_out",
    "stage_1.train",
    "stage_1.batch_size",
    "stage_1.steps",
    "stage_2.train",
    "stage_2.batch_size",
)


def check(recipe: ClipRecipe) -> tuple[int, list[list[Source]]]:
    """The step that training goes on behind, 0 = from its beginning, and the sources of each stage.

    Raises UserError for whatever in the data makes the run impossible: also for a folder that is another run's, and
    files that are not those that it was begun with. The model is checked by `pathor1.clip.models.find`.
    """
    trackers.check(recipe.trackers)
    folder = RunFolder(Path(recipe.runs_dir) / recipe.name)
    _refuse_other_run(recipe, folder)
    found = [sources(recipe.samples(stage)) for stage in recipe.stages]
    step = _begun(recipe, folder, found)
    for number, (stage, of_stage) in enumerate(zip(recipe.stages, found, strict=True), start=1):
        rows = sum(source.rows for source in of_stage)
        if rows < stage.batch_size:
            raise DataError(
                f"stage_{number}.batch_size = {stage.batch_size} and its files have {rows} samples: a batch would hold "
                "the same pair twice, told from itself; take a smaller one"
            )
        paths = list(dict.fromkeys(group.file for source in of_stage for group in source.groups))
        first_look(paths, tasks=("caption",), min_pixels=1, max_pixels=ANY_SIZE)
    return step, found


def _begun(recipe: ClipRecipe, folder: RunFolder, found: Sequence[list[Source]]) -> int:
    last = checkpoints.latest(folder.checkpoints)
    if last is None:
        return 0
    manifest = checkpoints.read(last)
    refuse_other(found[0 if manifest.step <= recipe.stage_1.steps else -1], manifest.stream)
    return manifest.step


def _refuse_other_run(recipe: ClipRecipe, folder: RunFolder) -> None:
    """Raises RunError where the folder holds a run that differs in what a run keeps."""
    if not has_begun(folder):
        return
    begun = absolute_clip(load(folder.recipe))
    last = checkpoints.latest(folder.checkpoints)
    step = checkpoints.step_of(last) or 0 if last is not None else 0
    in_stage_2 = step > begun.stage_1.steps
    kept = (key for key in FIXED if in_stage_2 or not key.startswith("stage_2"))
    refuse_changes(str(folder.path), begun, recipe, kept)
