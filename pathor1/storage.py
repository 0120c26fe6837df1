"""Where the relative paths of a recipe start.

That is the folder a command is started in, except in a Ray job: a job runs in a temporary copy of the folder it was
submitted from, which is removed with the cluster, and holds neither data nor models. There it is `$PATHOR1_STORAGE`,
or, on one machine, the clone that pathor1 is installed from.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from pathor1 import places
from pathor1.benchmark import BenchmarkRecipe, is_endpoint
from pathor1.contrastive import ClipEvaluation, ClipRecipe, Contrast
from pathor1.errors import RecipeError
from pathor1.recipe import Recipe
from pathor1.stage import StageRecipe

VARIABLE = "PATHOR1_STORAGE"
# Ray unpacks the working directory of a job under this folder of its session.
_JOB_COPY = "runtime_resources/working_dir_files"


def root() -> Path | None:
    """The folder that relative paths start from; None where nothing says which."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    here = Path.cwd()
    return _editable_clone() if _JOB_COPY in here.as_posix() else here


def _editable_clone() -> Path | None:
    """The folder of an editable install (PEP 610), where it exists on this machine."""
    text = distribution("pathor1").read_text("direct_url.json")
    record = json.loads(text) if text else {}
    if not record.get("dir_info", {}).get("editable"):
        return None
    clone = Path(unquote(urlparse(record["url"]).path))
    return clone if clone.is_dir() else None


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths. A model path that names no folder is kept: it may be a hub's.

    URIs of samples are kept. Raises RecipeError for a relative path in a Ray job that nothing says where to start, and
    for a URI where a folder has to be.
    """
    changes: dict[str, object] = {
        "runs_dir": anchored(recipe.runs_dir),
        "model": recipe.model.model_copy(update={"path": model(recipe.model.path)}),
        "data": recipe.data.model_copy(update={"train": samples(recipe.data.train), "test": samples(recipe.data.test)}),
    }
    reward = recipe.rl.reward
    path, _, name = (reward.function or "").rpartition(":")
    if path.endswith(".py"):
        reward = reward.model_copy(update={"function": f"{anchored(path)}:{name}"})
        changes["rl"] = recipe.rl.model_copy(update={"reward": reward})
    if recipe.warm_start is not None:
        warm_start = recipe.warm_start
        update = {"model": model(warm_start.model), "data": samples(warm_start.data)}
        changes["warm_start"] = warm_start.model_copy(update=update)
        # The warm start writes this one: it is a folder, whether it is there yet or not.
        changes["model"] = recipe.model.model_copy(update={"path": anchored(recipe.model.path)})
    return recipe.model_copy(update=changes)


def absolute_stage(recipe: StageRecipe) -> StageRecipe:
    """The same of a supervised stage's recipe."""
    return recipe.model_copy(
        update={
            "runs_dir": anchored(recipe.runs_dir),
            "model": recipe.model.model_copy(update={"path": model(recipe.model.path)}),
            "data": recipe.data.model_copy(update={"train": samples(recipe.data.train)}),
        }
    )


def absolute_clip(recipe: ClipRecipe) -> ClipRecipe:
    """The same of a recipe of contrastive training."""

    def stage(given: Contrast) -> Contrast:
        return given.model_copy(update={"train": samples(given.train)})

    architecture = recipe.model.architecture
    update = {
        "weights": model(recipe.model.weights) if recipe.model.weights else "",
        "architecture": anchored(architecture) if architecture.endswith(".json") else architecture,
    }
    return recipe.model_copy(
        update={
            "runs_dir": anchored(recipe.runs_dir),
            "model": recipe.model.model_copy(update=update),
            "data": recipe.data.model_copy(update={"left_out": [anchored(path) for path in recipe.data.left_out]}),
            "stage_1": stage(recipe.stage_1),
            "stage_2": None if recipe.stage_2 is None else stage(recipe.stage_2),
        }
    )


def absolute_clip_evaluation(recipe: ClipEvaluation) -> ClipEvaluation:
    """The same of an evaluation's."""

    def where(text: str) -> str:
        architecture, separator, weights = text.rpartition("@")
        own = anchored(architecture) if architecture.endswith(".json") else architecture
        return f"{own}{separator}{model(weights)}"

    def prompts(text: str) -> str:
        return anchored(text) if text.endswith(".json") else text

    return recipe.model_copy(
        update={
            "runs_dir": anchored(recipe.runs_dir),
            "models": {name: where(text) for name, text in recipe.models.items()},
            "zero_shot": {
                name: each.model_copy(update={"data": samples(each.data), "prompts": prompts(each.prompts)})
                for name, each in recipe.zero_shot.items()
            },
            "retrieval": {
                name: each.model_copy(update={"data": samples(each.data)}) for name, each in recipe.retrieval.items()
            },
            "probe": {
                name: each.model_copy(update={"train": samples(each.train), "test": samples(each.test)})
                for name, each in recipe.probe.items()
            },
        }
    )


def absolute_benchmark(recipe: BenchmarkRecipe) -> BenchmarkRecipe:
    """The same of a benchmark's recipe; models that are served are kept too."""
    models = {name: where if is_endpoint(where) else model(where) for name, where in recipe.models.items()}
    data = recipe.data.model_copy(update={"test": samples(recipe.data.test)})
    return recipe.model_copy(update={"runs_dir": anchored(recipe.runs_dir), "models": models, "data": data})


def anchored(path: str) -> str:
    """A path as an absolute one. Raises RecipeError as `absolute` does."""
    if places.is_remote(path):
        raise RecipeError(f"{path}: samples alone are read from object stores; write a folder that all nodes share")
    expanded, base = Path(path).expanduser(), root()
    if expanded.is_absolute():
        return str(expanded)
    if base is None:
        raise RecipeError(
            f"{path}: a relative path means nothing in a Ray job; set {VARIABLE} in the job's environment to a "
            "folder that all nodes share, or write the whole path"
        )
    return str(base / expanded)


def samples(paths: list[str]) -> list[str]:
    """Files of samples, those on disk with absolute paths."""
    return [path if places.is_remote(path) else anchored(path) for path in paths]


def model(path: str) -> str:
    """A model's folder as an absolute path; what names no folder is kept, as it may be a hub's."""
    base = root()
    local = Path(path).expanduser().is_absolute() or (base is not None and (base / path).exists())
    return anchored(path) if local or places.is_remote(path) or path.startswith((".", "runs/")) else path
