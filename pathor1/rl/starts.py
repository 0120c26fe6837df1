"""May a run start, and from where? Asked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pathor1 import attempts, checkpoints
from pathor1.data.first_look import first_look
from pathor1.data.row_groups import expand
from pathor1.data.sources import sources
from pathor1.data.stream import Source, refuse_other
from pathor1.errors import DataError, RunError
from pathor1.model.check import check as check_model
from pathor1.recipe import Recipe, load
from pathor1.rl import held_out, reward_function
from pathor1.rl.algorithms import spell_out
from pathor1.rl.copies import CheckpointStore
from pathor1.rl.reward_function import Program
from pathor1.runs import RunFolder
from pathor1.same_run import has_begun, refuse_changes
from pathor1.storage import absolute
from pathor1.tracking import trackers

# What a run's checkpoint and its place in the stream hang on: other values would be taken and not used, or break both.
FIXED = (
    "seed",
    "data.train",
    "data.shuffle",
    "data.tasks",
    "model.path",
    "rl.algorithm",
    "rl.learning_rate",
    "rl.weight_decay",
    "rl.reward.function",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """The run's own reward function, and the fields of a sample to try it with."""

    program: Program
    sample: Mapping[str, Any]


def check(recipe: Recipe) -> list[Source]:
    """The sources of a run that may start: its model, trackers and data are there, and it is not another run's.

    A run whose folder holds a checkpoint goes on behind it; `done` says whether there is anything to do. Raises
    UserError for whatever in the input makes the run impossible.
    """
    check_model(recipe.model.path)
    trackers.check(recipe.trackers)
    _refuse_other_run(recipe)
    data = recipe.data
    found = sources(data)
    last = checkpoints.latest(folder(recipe).checkpoints)
    manifest = None if last is None else checkpoints.read(last)
    if manifest is not None:
        refuse_other(found, manifest.stream)
    paths = list(dict.fromkeys(group.file for source in found for group in source.groups))
    if recipe.rl.evaluate_every:
        held_out.questions(recipe, manifest.evaluations if manifest is not None else ())
        paths += expand(data.test)
    first_look(paths, tasks=data.tasks, min_pixels=data.min_pixels, max_pixels=data.max_pixels)
    return found


def refuse_missing(recipe: Recipe, accelerator: str) -> None:
    """Raises RunError where a package is missing that the run's mode needs on this kind of machine, "cpu" or "gpu"."""
    if recipe.rl.mode == "separate_async" and accelerator == "gpu" and find_spec("cupy") is None:
        raise RunError(
            'rl.mode = "separate_async" sends weights from GPU to GPU by verl\'s NCCL engine, which needs cupy: '
            "`pip install cupy-cuda13x` on every node"
        )


def reward(recipe: Recipe, found: Sequence[Source]) -> Reward | None:
    """The run's own reward function, None = the built-in rule; a run that goes on keeps the one it was started with.

    It is tried here. Raises UserError where it cannot be used.
    """
    from pathor1.rl.preflight import sampled

    settings, run = recipe.rl.reward, folder(recipe)
    if settings.function is None:
        return None
    goes_on = attempts.number() > 1 or checkpoints.latest(run.checkpoints) is not None
    program = reward_function.load(
        settings.function, settings.function_timeout, kept=run.reward_function if goes_on else None
    )
    sample = next(sampled([group for source in found for group in source.groups], recipe.data.tasks), None)
    if sample is None:
        raise DataError("none of the training samples that were looked at can be used; see `pathor1 data check`")
    own = Reward(program=program, sample=reward_function.fields(sample))
    with reward_function.RewardFunction(program) as function:
        function.check(own.sample)
    return own


def take_newest(recipe: Recipe) -> None:
    """Looks whether the run's store may be written, and takes its newest checkpoint where the run has none or an older.

    Nothing without `rl.checkpoint_store`. Raises RunError for a store that refuses, and for a checkpoint that is
    damaged or another run's.
    """
    store = CheckpointStore.of(recipe)
    if store is None:
        return
    store.probe()
    root = folder(recipe).checkpoints
    there, here = max(store.scores(), default=0), max(checkpoints.scores(root), default=0)
    if there <= here:
        return
    with TemporaryDirectory() as place:
        begun = Path(place) / checkpoints.RECIPE
        store.fetch(there, checkpoints.RECIPE, begun)
        _refuse_changes(recipe, begun, store.uri)
    print(f"{recipe.name}: takes the checkpoint of step {there} from {store.uri}", flush=True)
    store.download(there, root)


def folder(recipe: Recipe) -> RunFolder:
    """The run's folder, which may not be there yet."""
    return RunFolder(Path(recipe.runs_dir) / recipe.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A run that has nothing to do any more: what it has done, in words, and the key that would have it do more."""

    what: str
    key: str


def done(recipe: Recipe) -> Done | None:
    """Whether a run has done all its steps, or as many as its patience allows, and evaluated the last; None = not."""
    last = checkpoints.latest(folder(recipe).checkpoints)
    if last is None:
        return None
    manifest, rl = checkpoints.read(last), recipe.rl
    if held_out.is_owed(manifest.step, recipe, manifest.evaluations):
        return None
    if manifest.step >= rl.steps:
        return Done(what=f"has done its {rl.steps} steps", key="rl.steps")
    if held_out.ends_early(manifest.evaluations, rl.early_stop_patience):
        return Done(what=f"has stopped early, behind step {manifest.step}", key="rl.early_stop_patience")
    return None


def _refuse_other_run(recipe: Recipe) -> None:
    """Raises RunError where the folder holds a run that differs in what a run keeps."""
    run = folder(recipe)
    if has_begun(run):
        _refuse_changes(recipe, run.recipe, str(run.path))


def _refuse_changes(recipe: Recipe, file: Path, where: str) -> None:
    refuse_changes(where, spell_out(absolute(load(file))), recipe, FIXED)
