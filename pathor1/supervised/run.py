"""Starts and ends a supervised stage: the recipe in, a model out."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from pathor1 import files
from pathor1.alive import alone
from pathor1.data.dealer import Deal, ReadEncoded
from pathor1.data.sources import sources
from pathor1.data.stream import Reading
from pathor1.errors import RecipeError
from pathor1.fork_server import RAYS_ACTORS
from pathor1.ray_cluster import choose_accelerator
from pathor1.ray_train import Training, run
from pathor1.recipe import Model, Recipe, Samples, to_toml
from pathor1.runs import RunFolder
from pathor1.samples import TASKS, Task
from pathor1.stage import StageRecipe
from pathor1.supervised import starts, worker
from pathor1.supervised.encode import EncodeRows, load_processor
from pathor1.supervised.packing import Layout
from pathor1.supervised.passes import Passes, SampleRow, Split
from pathor1.training import Stage

# What the processes of a stage on the CPU import: none of the first imports Ray, see `pathor1.fork_server`.
EARLY = (
    "torch",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "deepspeed",
)
LATE = (RAYS_ACTORS, "ray.data", "ray.train.torch", "pathor1.supervised.worker", "pathor1.supervised.loss")
# Steps whose samples are encoded ahead: enough that none is waited for, and few beside what is thrown away at the end.
STEPS_AHEAD = 8


def warm_start(recipe: Recipe) -> Path:
    """Runs the recipe's warm start on Ray Train and DeepSpeed, and returns the folder of the trained model.

    `recipe` has absolute paths (`pathor1.storage.absolute`). The model is written to `model.path`, whole or not at
    all; one of an earlier warm start is replaced, anything else there is refused. Joins the Ray cluster of
    `RAY_ADDRESS` (in a Ray job: its own) or starts one for itself. Raises UserError for whatever in the input makes the
    stage impossible, and SystemExit after SIGTERM.
    """
    stage = recipe.warm_start
    if stage is None:
        raise RecipeError("the recipe has no [warm_start] table; docs/recipes.md lists its keys")
    starts.check_warm_start(recipe, stage)
    gpu = choose_accelerator(recipe) == "gpu"
    folder = RunFolder.create(recipe.runs_dir, recipe.name)
    folder.warm_start_metrics.unlink(missing_ok=True)
    text = to_toml(recipe)
    files.write(folder.recipe, text)
    data = starts.warm_start_data(recipe, stage)
    job = worker.StageJob(
        name=recipe.name,
        text=text,
        gpu=gpu,
        steps=stage.steps,
        seed=recipe.seed,
        max_bad_fraction=data.max_bad_fraction,
        metrics=folder.warm_start_metrics,
        tensorboard=folder.tensorboard / "warm_start",
        trackers=(),
        checkpoints=None,
        stop=folder.path / ".stop",
        refused=folder.path / ".refused",
        table="warm_start",
        model=recipe.model,
        start=stage.model,
        training=stage.stage(),
        deal=_deal(recipe.model, stage.model, stage.stage(), data, TASKS, recipe.seed, folder.warm_start_left_out),
        out=Path(recipe.model.path),
    )
    run(job, _training(job, folder), recipe.cluster, workers=stage.workers, begun=0)
    return Path(recipe.model.path)


def train(recipe: StageRecipe) -> RunFolder:
    """Runs continued pretraining or fine-tuning as the recipe says, and returns the run's folder.

    `recipe` has absolute paths (`pathor1.storage.absolute_stage`) and a model's folder as `model.path`. A run whose
    folder holds a checkpoint goes on behind it, with any number of workers. Otherwise as `warm_start`; after SIGTERM
    there is a checkpoint.
    """
    folder = RunFolder(Path(recipe.runs_dir) / recipe.name)
    with alone(folder.path):
        begun = starts.check(recipe)
        training = recipe.training
        if begun >= training.steps:
            print(f"{recipe.name}: has done its {training.steps} steps already, in {folder.path}", flush=True)
            return folder
        gpu = choose_accelerator(recipe) == "gpu"
        RunFolder.create(recipe.runs_dir, recipe.name)
        text = to_toml(recipe)
        files.write(folder.recipe, text)
        start = recipe.model.path
        job = worker.StageJob(
            name=recipe.name,
            text=text,
            gpu=gpu,
            steps=training.steps,
            seed=recipe.seed,
            max_bad_fraction=recipe.data.max_bad_fraction,
            metrics=folder.metrics,
            tensorboard=folder.tensorboard,
            trackers=recipe.trackers,
            checkpoints=folder.checkpoints,
            stop=folder.path / ".stop",
            refused=folder.path / ".refused",
            table=recipe.stage,
            model=recipe.model,
            start=start,
            training=training,
            deal=_deal(recipe.model, start, training, recipe.data, recipe.tasks, recipe.seed, folder.left_out),
            out=None,
        )
        try:
            run(job, _training(job, folder), recipe.cluster, workers=recipe.workers, begun=begun)
        finally:
            shutil.rmtree(folder.path / worker.UNIVERSAL, ignore_errors=True)
    return folder


def _training(job: worker.StageJob, folder: RunFolder) -> Training:
    return Training(
        kind=job.table,
        what=job.table.replace("_", " "),
        function=worker.run,
        early=EARLY,
        late=LATE,
        state=folder.path / ".ray_train",
        out=job.out or folder.checkpoints,
        says=_says,
        ahead=partial(_load_ahead, job.start),
    )


def _deal(
    model: Model,
    start: str,
    training: Stage,
    data: Samples,
    tasks: tuple[Task, ...],
    seed: int,
    left_out: Path,
) -> Deal[SampleRow, Passes]:
    encode = EncodeRows(
        model=start,
        system_prompt=data.system_prompt,
        max_tokens=training.max_tokens,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
    )
    return Deal(
        sources=sources(data),
        reading=Reading(
            tasks=tasks,
            min_pixels=data.min_pixels,
            max_pixels=data.max_pixels,
            shuffle=data.shuffle,
            workers=data.workers,
            encoded=True,
        ),
        read=ReadEncoded(
            encode=encode,
            row=SampleRow,
            told=("tokens", "learned"),
            rows_ahead=STEPS_AHEAD * training.batch_size,
        ),
        split=Split(layout=Layout.of(model, training)),
        seed=seed,
        batch_size=training.batch_size,
        steps=training.steps,
        left_out=left_out,
        max_bad_fraction=data.max_bad_fraction,
    )


def _load_ahead(model: str) -> None:
    """Loads the processor in an idle process, which Ray then gives to the first reader of the stream.

    A reader would start only when all workers are ready, and then let them wait for as long again.
    """
    import ray

    ray.remote(num_cpus=0)(_load).remote(model)


def _load(model: str) -> None:
    load_processor(model)


def _says(row: dict[str, Any]) -> str:
    return f"loss {row['loss']:.4f}  learning rate {row['learning_rate']:.1e}  {row['tokens_per_second']:.0f} tokens/s"
