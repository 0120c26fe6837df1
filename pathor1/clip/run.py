"""Starts and ends contrastive training: the recipe in, checkpoints out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pathor1 import files
from pathor1.alive import alone
from pathor1.clip import leaks, models, starts, worker
from pathor1.clip.dealer import Deal
from pathor1.clip.encode import EncodePairs, ReadPairs
from pathor1.contrastive import ANY_SIZE, ClipRecipe
from pathor1.data.stream import Reading
from pathor1.fork_server import RAYS_ACTORS
from pathor1.ray_cluster import check_resources, choose_accelerator, imported_once, ray_cluster
from pathor1.ray_train import fit, last_row, progress, stop_asked
from pathor1.recipe import to_toml
from pathor1.runs import RunFolder

# What the processes of a run on the CPU import: none of the first imports Ray, see `pathor1.fork_server`.
EARLY = ("torch", "open_clip")
LATE = (RAYS_ACTORS, "ray.data", "ray.train.torch", "pathor1.clip.worker")


def train(recipe: ClipRecipe) -> RunFolder:
    """Runs the stages of a recipe, and returns the run's folder.

    `recipe` has absolute paths (`pathor1.storage.absolute_clip`). A run whose folder holds a checkpoint goes on behind
    it, with any number of workers. Joins the Ray cluster of `RAY_ADDRESS` (in a Ray job: its own) or starts one for
    itself. Raises UserError for whatever in the input makes it impossible, and SystemExit after SIGTERM, when there is
    a checkpoint.
    """
    folder = RunFolder(Path(recipe.runs_dir) / recipe.name)
    with alone(folder.path):
        begun, sources = starts.check(recipe)
        if begun >= recipe.steps:
            print(f"{recipe.name}: has done its {recipe.steps} steps already, in {folder.path}", flush=True)
            return folder
        ids = leaks.listed(recipe.data.left_out)
        gpu = choose_accelerator(recipe) == "gpu"
        found = models.find(recipe.model)
        RunFolder.create(recipe.runs_dir, recipe.name)
        text = to_toml(recipe)
        files.write(folder.recipe, text)
        read = ReadPairs(encode=EncodePairs(model=found, crop=recipe.data.crop, seed=recipe.seed, left_out=ids))
        reading = Reading(
            tasks=("caption",),
            min_pixels=1,
            max_pixels=ANY_SIZE,
            shuffle=recipe.data.shuffle,
            workers=recipe.data.workers,
            encoded=True,
        )
        deals = [
            Deal(
                sources=of_stage,
                reading=reading,
                read=read,
                seed=recipe.seed,
                batch_size=stage.batch_size,
                steps=stage.steps,
                left_out=folder.path / f"left_out_stage_{number}.jsonl",
                max_bad_fraction=recipe.data.max_bad_fraction,
            )
            for number, (stage, of_stage) in enumerate(zip(recipe.stages, sources, strict=True), start=1)
        ]
        job = worker.Job(
            recipe=recipe,
            text=text,
            model=found,
            gpu=gpu,
            deals=deals,
            checkpoints=folder.checkpoints,
            metrics=folder.metrics,
            tensorboard=folder.tensorboard,
            stop=folder.path / ".stop",
            refused=folder.path / ".refused",
        )
        _run(job, folder, begun)
    return folder


def _run(job: worker.Job, folder: RunFolder, begun: int) -> None:
    recipe, kind = job.recipe, "gpu" if job.gpu else "cpu"
    environment = {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}
    started = time.monotonic()
    for left in (job.stop, job.refused):
        left.unlink(missing_ok=True)
    steps = " + ".join(str(stage.steps) for stage in recipe.stages)
    where = f", behind step {begun}" if begun else ""
    print(f"{recipe.name}: {job.model.name} on {recipe.workers} {kind} workers, {steps} steps{where}", flush=True)
    with (
        imported_once(kind, early=EARLY, late=LATE) as python,
        ray_cluster(
            environment,
            object_store_gb=recipe.cluster.object_store_gb,
            log_to_driver=False,
            secrets=recipe.cluster.secrets,
            python=python,
        ),
    ):
        check_resources(kind.upper(), recipe.workers + (0 if job.gpu else 1), f"{recipe.workers} workers")
        line = _line(recipe.steps, begun, started)
        with progress(job.metrics, begun, line), stop_asked(job.stop, recipe.cluster.stop_grace) as stopped:
            fit(
                worker.run,
                {"job": job},
                name="clip",
                workers=recipe.workers,
                gpu=job.gpu,
                state=folder.path / ".ray_train",
                max_failures=recipe.cluster.max_restarts,
                refused=job.refused,
            )
    if stopped:
        row = last_row(job.metrics)
        done = int(row["step"]) if row else 0
        print(f"{recipe.name}: stopped; a checkpoint of step {done} is there, and the same command goes on", flush=True)
        raise SystemExit(128 + stopped[0])
    print(f"{recipe.name}: {folder.checkpoints} written after {time.monotonic() - started:.0f} s", flush=True)


def _line(steps: int, begun: int, started: float) -> Callable[[dict[str, Any]], str]:
    """A row of the metrics -> a line of progress."""

    def line(row: dict[str, Any]) -> str:
        step, elapsed = int(row["step"]), time.monotonic() - started
        left = elapsed / max(step - begun, 1) * (steps - step)
        bar = "#" * (20 * step // steps)
        dropped = f"  {row['data/left_out']:.0f} samples left out" if row["data/left_out"] else ""
        return (
            f"step {step}/{steps} [{bar:.<20}]  stage {row['stage']:.0f}  loss {row['loss']:.4f}  learning rate "
            f"{row['learning_rate']:.1e}  {row['pairs_per_second']:.0f} pairs/s  {row['seconds/step']:.2f} s (data "
            f"{row['seconds/data']:.2f} s)  [{elapsed:.0f} s, {left:.0f} s to go]{dropped}"
        )

    return line
