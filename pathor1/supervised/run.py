"""Starts and ends a supervised stage: the recipe in, a model folder out."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pathor1 import files
from pathor1.data.first_look import first_look
from pathor1.data.row_groups import expand, row_groups
from pathor1.errors import RecipeError, RunError, UserError
from pathor1.fork_server import RAYS_ACTORS
from pathor1.model.check import check as check_model
from pathor1.ray_cluster import check_resources, choose_accelerator, imported_once, ray_cluster
from pathor1.recipe import Recipe, WarmStart, to_toml
from pathor1.runs import RunFolder
from pathor1.samples import TASKS
from pathor1.supervised import batches, worker
from pathor1.supervised.encode import load_processor

# What the processes of a warm start on the CPU import: none of the first imports Ray, see `pathor1.fork_server`.
EARLY = (
    "torch",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "deepspeed",
)
LATE = (RAYS_ACTORS, "ray.data", "ray.train.torch", "pathor1.supervised.worker", "pathor1.supervised.loss")
# A progress line at most this often, in seconds.
EVERY = 5.0


def train(recipe: Recipe) -> Path:
    """Runs the recipe's warm start on Ray Train and DeepSpeed, and returns the folder of the trained model.

    `recipe` has absolute paths (`pathor1.storage.absolute`). The model is written to `model.path`, whole or not at
    all; one of an earlier warm start is replaced, anything else there is refused. Joins the Ray cluster of
    `RAY_ADDRESS` (in a Ray job: its own) or starts one for itself. Raises UserError for whatever in the input makes the
    stage impossible.
    """
    stage = _checked(recipe)
    accelerator = choose_accelerator(recipe)
    with imported_once(accelerator, early=EARLY, late=LATE) as python:
        return _train(recipe, stage, accelerator, python)


def _train(recipe: Recipe, stage: WarmStart, accelerator: str, python: str | None) -> Path:
    folder = RunFolder.create(recipe.runs_dir, recipe.name)
    folder.warm_start_metrics.unlink(missing_ok=True)
    files.write(folder.recipe, to_toml(recipe))
    environment = {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}
    started = time.monotonic()
    print(f"{recipe.name}: warm start on {stage.workers} {accelerator} workers, {stage.steps} steps", flush=True)
    with ray_cluster(
        environment,
        object_store_gb=recipe.cluster.object_store_gb,
        log_to_driver=False,
        secrets=recipe.cluster.secrets,
        python=python,
    ):
        spare = 1 if accelerator == "cpu" else 0
        check_resources(accelerator.upper(), stage.workers + spare, f"{stage.workers} workers (warm_start.workers)")
        _load_ahead(stage.model)
        job = worker.Job(model=recipe.model, stage=stage, seed=recipe.seed, metrics=folder.warm_start_metrics)
        with _progress(folder.warm_start_metrics, stage, started):
            _fit(recipe, stage, job, folder, accelerator)
    print(f"{recipe.name}: {recipe.model.path} written after {time.monotonic() - started:.0f} s", flush=True)
    return Path(recipe.model.path)


def _checked(recipe: Recipe) -> WarmStart:
    stage = recipe.warm_start
    if stage is None:
        raise RecipeError("the recipe has no [warm_start] table; docs/recipes.md lists its keys")
    if Path(stage.model).expanduser().absolute() == Path(recipe.model.path):
        raise RecipeError(
            f"warm_start.model and model.path are the same folder, {stage.model}: the warm start writes the second"
        )
    check_model(stage.model)
    paths = expand(stage.data)
    row_groups(paths)
    first_look(paths, tasks=TASKS, min_pixels=recipe.data.min_pixels, max_pixels=recipe.data.max_pixels)
    if RunFolder(Path(recipe.runs_dir) / recipe.name).metrics.exists():
        raise RunError(f"{recipe.runs_dir}/{recipe.name}: has begun RL; give this warm start another name")
    target = Path(recipe.model.path)
    if target.exists() and not (target / worker.MARK).is_file():
        raise RunError(
            f"{target}: is there already and was not made by a warm start, which would replace it; set model.path to a "
            "folder that is not there yet"
        )
    return stage


def _fit(recipe: Recipe, stage: WarmStart, job: worker.Job, folder: RunFolder, accelerator: str) -> None:
    import ray.data
    import ray.train
    from ray.train.torch import TorchTrainer

    options = ray.data.ExecutionOptions(preserve_order=True)  # the same seed, the same batches
    state = folder.path / ".ray_train"
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=stage.workers,
            use_gpu=accelerator == "gpu",
            resources_per_worker={"CPU": 1} if accelerator == "cpu" else {"GPU": 1},
        ),
        run_config=ray.train.RunConfig(name="warm_start", storage_path=str(state)),
        datasets={"train": batches.dataset(recipe, stage)},
        dataset_config=ray.train.DataConfig(execution_options=options, enable_shard_locality=False),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        # The first rank's reason: one that is gone makes the others fail as well.
        for failure in error.worker_failures.values():
            if isinstance(failure, UserError):
                raise failure from None
        raise
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _load_ahead(model: str) -> None:
    """Loads the processor in an idle process, which Ray then gives to the first reader of the stream.

    A reader would start only when all workers are ready, and then let them wait for as long again.
    """
    import ray

    ray.remote(num_cpus=0)(_load).remote(model)


def _load(model: str) -> None:
    load_processor(model)


def _run_worker(config: dict[str, Any]) -> None:
    worker.train(config["job"])


@contextmanager
def _progress(metrics: Path, stage: WarmStart, started: float) -> Iterator[None]:
    """Prints where the stage is, from the metrics that its rank 0 writes, wherever that runs."""
    done = threading.Event()

    def follow() -> None:
        shown = 0
        while not done.wait(EVERY):
            shown = _show(metrics, stage, started, shown)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _show(metrics, stage, started, -1)


def _show(metrics: Path, stage: WarmStart, started: float, shown: int) -> int:
    """One line for the last whole row of the metrics, where it is newer than step `shown`; returns its step."""
    row = _last_row(metrics)
    if row is None or row["step"] <= shown:
        return shown
    dropped = f"  {row['samples/dropped']} samples left out: {row['problem']}" if row["samples/dropped"] else ""
    print(
        f"step {row['step']}/{stage.steps}  loss {row['loss']:.4f}  learning rate {row['learning_rate']:.1e}  "
        f"{row['seconds/step']:.2f} s (data {row['seconds/data']:.2f} s)  "
        f"[{time.monotonic() - started:.0f} s]{dropped}",
        flush=True,
    )
    return int(row["step"])


def _last_row(path: Path) -> dict[str, Any] | None:
    """The last whole line, read from the file's end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None
