"""Starts and ends a supervised stage: the recipe in, a model out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathor1 import files
from pathor1.alive import alone
from pathor1.data.sources import sources
from pathor1.data.stream import Reading
from pathor1.errors import RecipeError
from pathor1.fork_server import RAYS_ACTORS
from pathor1.ray_cluster import check_resources, choose_accelerator, imported_once, ray_cluster
from pathor1.ray_train import fit, last_row, progress, stop_asked
from pathor1.recipe import Cluster, Model, Recipe, Samples, to_toml
from pathor1.runs import RunFolder
from pathor1.samples import TASKS, Task
from pathor1.stage import StageRecipe
from pathor1.supervised import starts, worker
from pathor1.supervised.dealer import Deal, ReadEncoded
from pathor1.supervised.encode import EncodeRows, load_processor
from pathor1.supervised.packing import Layout
from pathor1.training import Stage

# What the processes of a stage on the CPU import: none of the first imports Ray, see `pathor1.fork_server`.
EARLY = (
    "torch",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "deepspeed",
)
LATE = (RAYS_ACTORS, "ray.data", "ray.train.torch", "pathor1.supervised.worker", "pathor1.supervised.loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A stage, whichever recipe it comes from."""

    job: worker.Job
    cluster: Cluster
    workers: int
    folder: RunFolder
    begun: int = 0  # steps that are done already


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
    job = worker.Job(
        name=recipe.name,
        table="warm_start",
        recipe=text,
        model=recipe.model,
        start=stage.model,
        training=stage.stage(),
        seed=recipe.seed,
        gpu=gpu,
        deal=_deal(recipe.model, stage.model, stage.stage(), data, TASKS, recipe.seed, folder.warm_start_left_out),
        metrics=folder.warm_start_metrics,
        tensorboard=folder.tensorboard / "warm_start",
        trackers=(),
        out=Path(recipe.model.path),
        saving=None,
        stop=folder.path / ".stop",
        refused=folder.path / ".refused",
    )
    _run(_Asked(job=job, cluster=recipe.cluster, workers=stage.workers, folder=folder))
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
        job = worker.Job(
            name=recipe.name,
            table=recipe.stage,
            recipe=text,
            model=recipe.model,
            start=start,
            training=training,
            seed=recipe.seed,
            gpu=gpu,
            deal=_deal(recipe.model, start, training, recipe.data, recipe.tasks, recipe.seed, folder.left_out),
            metrics=folder.metrics,
            tensorboard=folder.tensorboard,
            trackers=recipe.trackers,
            out=None,
            saving=worker.Saving(root=folder.checkpoints, every=training.save_every, keep=training.keep_checkpoints),
            stop=folder.path / ".stop",
            refused=folder.path / ".refused",
        )
        _run(_Asked(job=job, cluster=recipe.cluster, workers=recipe.workers, folder=folder, begun=begun))
    return folder


def _deal(
    model: Model,
    start: str,
    training: Stage,
    data: Samples,
    tasks: tuple[Task, ...],
    seed: int,
    left_out: Path,
) -> Deal:
    return Deal(
        sources=sources(data),
        reading=Reading(
            tasks=tasks,
            min_pixels=data.min_pixels,
            max_pixels=data.max_pixels,
            shuffle=data.shuffle,
            workers=data.workers,
        ),
        read=ReadEncoded(
            encode=EncodeRows(model=start, system_prompt=data.system_prompt, max_tokens=training.max_tokens)
        ),
        layout=Layout.of(model, training),
        seed=seed,
        batch_size=training.batch_size,
        steps=training.steps,
        left_out=left_out,
        max_bad_fraction=data.max_bad_fraction,
    )


def _run(asked: _Asked) -> None:
    job, kind = asked.job, "gpu" if asked.job.gpu else "cpu"
    environment = {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}
    started = time.monotonic()
    for left in (job.stop, job.refused):
        left.unlink(missing_ok=True)
    where = f", behind step {asked.begun}" if asked.begun else ""
    print(
        f"{job.name}: {job.table.replace('_', ' ')} on {asked.workers} {kind} workers, "
        f"{job.training.steps} steps{where}",
        flush=True,
    )
    with (
        imported_once(kind, early=EARLY, late=LATE) as python,
        ray_cluster(
            environment,
            object_store_gb=asked.cluster.object_store_gb,
            log_to_driver=False,
            secrets=asked.cluster.secrets,
            python=python,
        ),
    ):
        spare = 0 if job.gpu else 1
        check_resources(kind.upper(), asked.workers + spare, f"{asked.workers} workers")
        _load_ahead(job.start)
        line = _line(job.training.steps, asked.begun, started)
        with progress(job.metrics, asked.begun, line), stop_asked(job.stop, asked.cluster.stop_grace) as stopped:
            _fit(asked)
    seconds = time.monotonic() - started
    if stopped:
        row = last_row(job.metrics)
        done = int(row["step"]) if row else 0
        saved = f"; a checkpoint of step {done} is there, and the same command goes on" if job.saving else ""
        print(f"{job.name}: stopped{saved}", flush=True)
        raise SystemExit(128 + stopped[0])
    print(f"{job.name}: {job.out or asked.folder.checkpoints} written after {seconds:.0f} s", flush=True)


def _fit(asked: _Asked) -> None:
    job = asked.job
    try:
        fit(
            worker.run,
            {"job": job},
            name=job.table,
            workers=asked.workers,
            gpu=job.gpu,
            state=asked.folder.path / ".ray_train",
            max_failures=asked.cluster.max_restarts,
            refused=job.refused,
        )
    finally:
        shutil.rmtree(asked.folder.path / worker.UNIVERSAL, ignore_errors=True)


def _load_ahead(model: str) -> None:
    """Loads the processor in an idle process, which Ray then gives to the first reader of the stream.

    A reader would start only when all workers are ready, and then let them wait for as long again.
    """
    import ray

    ray.remote(num_cpus=0)(_load).remote(model)


def _load(model: str) -> None:
    load_processor(model)


def _line(steps: int, begun: int, started: float) -> Callable[[dict[str, Any]], str]:
    """A row of the metrics -> a line of progress."""

    def line(row: dict[str, Any]) -> str:
        step, elapsed = int(row["step"]), time.monotonic() - started
        left = elapsed / max(step - begun, 1) * (steps - step)
        bar = "#" * (20 * step // steps)
        dropped = f"  {row['data/left_out']:.0f} samples left out" if row["data/left_out"] else ""
        return (
            f"step {step}/{steps} [{bar:.<20}]  loss {row['loss']:.4f}  learning rate {row['learning_rate']:.1e}  "
            f"{row['tokens_per_second']:.0f} tokens/s  {row['seconds/step']:.2f} s (data {row['seconds/data']:.2f} s)  "
            f"[{elapsed:.0f} s, {left:.0f} s to go]{dropped}"
        )

    return line
