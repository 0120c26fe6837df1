"""Starts and ends a supervised stage: the recipe in, a model out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pathor1 import files
from pathor1.alive import alone
from pathor1.data.sources import sources
from pathor1.data.stream import Reading
from pathor1.errors import RecipeError, RunError
from pathor1.fork_server import RAYS_ACTORS
from pathor1.ray_cluster import check_resources, choose_accelerator, imported_once, ray_cluster
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
# A progress line at most this often, in seconds.
EVERY = 5.0


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
        with _progress(job, asked.begun, started), _stop_asked(job.stop, asked.cluster.stop_grace) as stopped:
            _fit(asked)
    seconds = time.monotonic() - started
    if stopped:
        saved = (
            f"; a checkpoint of step {_done(job.metrics)} is there, and the same command goes on" if job.saving else ""
        )
        print(f"{job.name}: stopped{saved}", flush=True)
        raise SystemExit(128 + stopped[0])
    print(f"{job.name}: {job.out or asked.folder.checkpoints} written after {seconds:.0f} s", flush=True)


def _fit(asked: _Asked) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    job, state = asked.job, asked.folder.path / ".ray_train"
    trainer = TorchTrainer(
        worker.run,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=asked.workers,
            use_gpu=job.gpu,
            resources_per_worker={"GPU": 1} if job.gpu else {"CPU": 1},
        ),
        run_config=ray.train.RunConfig(
            name=job.table,
            storage_path=str(state),
            failure_config=ray.train.FailureConfig(max_failures=asked.cluster.max_restarts),
        ),
    )
    # In the main thread Ray Train would take Ctrl-C for itself, and end without saving.
    beside = ThreadPoolExecutor(max_workers=1)
    try:
        beside.submit(trainer.fit).result()
    except ray.train.WorkerGroupError:
        if not job.refused.exists():
            raise
    finally:
        beside.shutdown(wait=False)
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(asked.folder.path / worker.UNIVERSAL, ignore_errors=True)
    if job.refused.exists():
        reason = job.refused.read_text(encoding="utf-8")
        job.refused.unlink()
        raise RunError(reason)


@contextmanager
def _stop_asked(stop: Path, grace: float) -> Iterator[list[int]]:
    """Within it, SIGTERM and Ctrl-C ask the workers to save and to end, which they have `grace` seconds for.

    Gives a list that has the signal's number then. Another Ctrl-C ends the process at once.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise SystemExit(128 + number)
        asked.append(number)
        print(f"asked to stop: saving a checkpoint, at most {grace:.0f} s (cluster.stop_grace)", flush=True)
        stop.touch()
        signal.setitimer(signal.ITIMER_REAL, grace)

    def late(number: int, frame: Any) -> NoReturn:
        print("not stopped in time: ended where it was, the checkpoint before counts", file=sys.stderr, flush=True)
        raise SystemExit(128 + asked[0])

    handlers = {signal.SIGTERM: ask, signal.SIGINT: ask, signal.SIGALRM: late}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.unlink(missing_ok=True)


def _load_ahead(model: str) -> None:
    """Loads the processor in an idle process, which Ray then gives to the first reader of the stream.

    A reader would start only when all workers are ready, and then let them wait for as long again.
    """
    import ray

    ray.remote(num_cpus=0)(_load).remote(model)


def _load(model: str) -> None:
    load_processor(model)


@contextmanager
def _progress(job: worker.Job, begun: int, started: float) -> Iterator[None]:
    """Prints where the stage is, from the metrics that its rank 0 writes, wherever that runs."""
    done = threading.Event()
    steps = job.training.steps

    def follow() -> None:
        shown = begun
        while not done.wait(EVERY):
            shown = _show(job.metrics, steps, begun, started, shown)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _show(job.metrics, steps, begun, started, begun - 1)


def _show(metrics: Path, steps: int, begun: int, started: float, shown: int) -> int:
    """One line for the last whole row of the metrics, where it is newer than step `shown`; returns its step."""
    row = _last_row(metrics)
    if row is None or row["step"] <= shown:
        return shown
    step, elapsed = int(row["step"]), time.monotonic() - started
    left = elapsed / max(step - begun, 1) * (steps - step)
    bar = "#" * (20 * step // steps)
    dropped = f"  {row['data/left_out']:.0f} samples left out" if row["data/left_out"] else ""
    print(
        f"step {step}/{steps} [{bar:.<20}]  loss {row['loss']:.4f}  learning rate {row['learning_rate']:.1e}  "
        f"{row['tokens_per_second']:.0f} tokens/s  {row['seconds/step']:.2f} s (data {row['seconds/data']:.2f} s)  "
        f"[{elapsed:.0f} s, {left:.0f} s to go]{dropped}",
        flush=True,
    )
    return step


def _done(metrics: Path) -> int:
    row = _last_row(metrics)
    return int(row["step"]) if row else 0


def _last_row(path: Path) -> dict[str, Any] | None:
    """The last whole line, read from the file's end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None
