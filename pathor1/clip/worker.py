"""What every process of contrastive training does: the stages in turn, a step for each batch, checkpoints."""

from __future__ import annotations

import math
import time
import tomllib
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathor1 import checkpoints, files
from pathor1.checkpoints import MODEL
from pathor1.clip import checkpoint, models
from pathor1.clip.dealer import Deal, Dealer, Share
from pathor1.clip.encode import PairRow
from pathor1.clip.models import Found
from pathor1.clip.step import Stepped, Trainer
from pathor1.contrastive import ClipModel, ClipRecipe
from pathor1.data.stream import StreamState
from pathor1.errors import RunError, UserError
from pathor1.tracking.log import MetricsLog

# Steps whose batches are made ahead.
AHEAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the training processes are told.

    text: the recipe as TOML; model: what it begins with; deals: of each stage. stop, refused: files by which the driver
    asks for the end, and is told why the input is wrong.
    """

    recipe: ClipRecipe
    text: str
    model: Found
    gpu: bool
    deals: Sequence[Deal]
    checkpoints: Path
    metrics: Path  # one JSON object a step, written by rank 0
    tensorboard: Path
    stop: Path
    refused: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What training goes on from, step 0 and None = from its beginning. step: of all stages together."""

    step: int = 0
    path: Path | None = None
    stream: StreamState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A rank's share of a step: pixels [n, height, width, 3] uint8, tokens [n, context] int64."""

    share: Share
    pixels: Any
    tokens: Any


def run(config: dict[str, Any]) -> None:
    """Trains on this rank. What is wrong with the input is written down: a restart of Ray Train's would not change it.

    Raises UserError where it finds that.
    """
    job: Job = config["job"]
    if job.refused.exists():
        return
    try:
        train(job)
    except Exception as error:
        cause = getattr(error, "cause", None) or error  # Ray hands on what happened in another process so
        if isinstance(cause, UserError):
            files.write(job.refused, str(cause))
        raise


def train(job: Job) -> None:
    """Runs the stages on this rank, from their beginning or behind the last checkpoint.

    Raises DataError where too many samples cannot be used, RunError where the loss is no number any more.
    """
    import ray.train
    import torch

    context = ray.train.get_context()
    rank = context.get_world_rank()
    begun = _begin(job, rank)
    torch.manual_seed(job.recipe.seed)  # the same random weights on every rank
    model = _model(job, begun)
    tokenizer = models.tokenizer(job.model) if rank == 0 else None
    with _log(job, rank, begun.step) as log:
        before = 0
        for number, stage in enumerate(job.recipe.stages, start=1):
            done = min(max(begun.step - before, 0), stage.steps)
            if done < stage.steps and _stage(_Stage(job, number, before, model, tokenizer, log), begun, done):
                return
            before += stage.steps


def _stage(stage: _Stage, begun: Begun, done: int) -> bool:
    """Runs a stage behind its first `done` steps; True where the run was asked to stop on the way."""
    job, trainer, stream = stage.job, stage.trainer, None
    if done and begun.path is not None:
        checkpoint.load_optimizer(trainer.optimizer, begun.path)
        stream = begun.stream
    with _dealer(job.deals[stage.number - 1], trainer.rank, trainer.ranks, stream, done) as dealer:
        return stage.run(_feed(dealer, trainer.rank, range(done + 1, trainer.stage.steps + 1), job.model))


class _Stage:
    """The steps of one stage. before: steps of the stages before it."""

    def __init__(self, job: Job, number: int, before: int, model: Any, tokenizer: Any, log: MetricsLog | None) -> None:
        recipe = job.recipe
        self.job, self.number, self.before = job, number, before
        self.trainer = Trainer(model, recipe.stages[number - 1], dtype=recipe.model.dtype, seed=recipe.seed)
        self.tokenizer, self.log = tokenizer, log
        self.saved = 0.0

    def run(self, feed: Iterator[tuple[int, Batch, float]]) -> bool:
        """All steps that are left; True where the run was asked to stop on the way."""
        stage, job = self.trainer.stage, self.job
        for step, batch, waited in feed:
            started = time.monotonic() - waited
            done = self.trainer.step(batch.pixels, batch.tokens, number=step, stop=job.stop.exists())
            _check_finite(self.number, step, done)
            if self.log is not None:
                seconds = time.monotonic() - started
                times = {"seconds/step": seconds, "seconds/data": waited, "seconds/checkpoint": self.saved}
                self.log.write(self.before + step, {**self._values(batch.share, done), **times} | self._rate(seconds))
            last, self.saved = step == stage.steps, 0.0
            if last or done.stop or step % stage.save_every == 0:
                started = time.monotonic()
                self._save(step, batch.share.stream)
                self.saved = time.monotonic() - started
            if done.stop and self.before + step < job.recipe.steps:
                return True
        return False

    def _rate(self, seconds: float) -> dict[str, float]:
        return {"pairs_per_second": self.trainer.stage.batch_size / seconds}

    def _values(self, share: Share, done: Stepped) -> dict[str, float]:
        return {
            "stage": float(self.number),
            "loss": done.loss,
            "learning_rate": done.learning_rate,
            "gradient_norm": done.gradient_norm,
            "similarity_scale": done.scale,
            "captions/full": share.full / self.trainer.stage.batch_size,
            "data/left_out": float(share.left_out),
            "data/left_out_share": share.left_out_share,
        }

    def _save(self, step: int, stream: StreamState) -> None:
        import torch.distributed as dist

        job = self.job
        if self.trainer.rank == 0:
            checkpoint.save(
                self.trainer.model,
                job.model.config,
                self.tokenizer,
                self.trainer.optimizer,
                job.checkpoints,
                self.before + step,
                stream=stream,
                ranks=self.trainer.ranks,
                recipe=job.text,
                keep=job.recipe.keep_checkpoints,
                spare=(job.recipe.stage_1.steps,),
            )
        dist.barrier()


def _begin(job: Job, rank: int) -> Begun:
    """The last checkpoint, which the first rank looks for, and tells the others."""
    import torch.distributed as dist

    told: list[Begun] = [Begun()]
    if rank == 0:
        checkpoints.remove_incomplete(job.checkpoints)
        path = checkpoints.latest(job.checkpoints)
        if path is not None:
            manifest = checkpoints.read(path)
            checkpoints.verify(path, manifest.files)
            told = [Begun(step=manifest.step, path=path, stream=manifest.stream)]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _model(job: Job, begun: Begun) -> Any:
    from ray.train.torch import get_device

    found = job.model if begun.path is None else models.find(ClipModel(weights=str(begun.path / MODEL)))
    model = models.build(found, device=str(get_device()))
    model.train()
    if job.recipe.model.gradient_checkpointing:
        model.set_grad_checkpointing()
    return model


@contextmanager
def _log(job: Job, rank: int, done: int) -> Iterator[MetricsLog | None]:
    """Where the steps' numbers go, on the first rank; None on the others."""
    if rank:
        yield None
        return
    recipe = job.recipe
    constants = {"steps_planned": float(recipe.steps), "limit/left_out_share": recipe.data.max_bad_fraction}
    with MetricsLog(
        job.metrics,
        job.tensorboard,
        run=recipe.name,
        keep_up_to=done,
        trackers=recipe.trackers,
        recipe=tomllib.loads(job.text),
        constants=constants,
    ) as log:
        yield log


@contextmanager
def _dealer(deal: Deal, rank: int, ranks: int, start: StreamState | None, done: int) -> Iterator[Any]:
    """The stage's dealer, which the first rank starts."""
    import ray
    import torch.distributed as dist

    told = [f"dealer-{uuid.uuid4().hex}"]
    made: Any = None
    if rank == 0:
        made = ray.remote(num_cpus=0)(Dealer).options(name=told[0])
        made = made.remote(deal, ranks=ranks, start=start, done=done)
    dist.broadcast_object_list(told, src=0)
    try:
        yield made or ray.get_actor(told[0])
    finally:
        if made is not None:
            ray.kill(made)


def _feed(dealer: Any, rank: int, steps: range, model: Found) -> Iterator[tuple[int, Batch, float]]:
    """Each step with this rank's share, made beside the training, and how long it waited for it (s)."""
    import ray

    def made(step: int) -> Batch:
        share: Share = ray.get(dealer.share.remote(step, rank))
        blocks = list({row.block: None for row in share.rows})
        return batch(share, dict(zip(blocks, ray.get(blocks), strict=True)), model)

    with ThreadPoolExecutor(max_workers=1) as beside:
        waiting: list[Future[Batch]] = [beside.submit(made, step) for step in steps[:AHEAD]]
        for place, step in enumerate(steps):
            started = time.monotonic()
            found = waiting.pop(0).result()
            if place + AHEAD < len(steps):
                waiting.append(beside.submit(made, steps[place + AHEAD]))
            yield step, found, time.monotonic() - started


def batch(share: Share, tables: dict[Any, Any], model: Found) -> Batch:
    """A rank's pairs as tensors. tables: by the blocks that the rows lie in."""
    import torch

    height, width = model.image_size
    pixels = np.empty((len(share.rows), height, width, 3), dtype=np.uint8)
    tokens = np.zeros((len(share.rows), model.context_length), dtype=np.int64)
    columns = {block: (table["pixels"], table["tokens"]) for block, table in tables.items()}
    for place, row in enumerate(share.rows):
        cut, text = _values(columns[row.block], row)
        pixels[place] = cut.reshape(height, width, 3)
        tokens[place, : len(text)] = text
    return Batch(share=share, pixels=torch.from_numpy(pixels), tokens=torch.from_numpy(tokens))


def _values(columns: tuple[Any, Any], row: PairRow) -> tuple[Any, Any]:
    pixels, tokens = columns
    cut = np.frombuffer(pixels[row.index].as_buffer(), dtype=np.uint8)
    return cut, tokens[row.index].values.to_numpy(zero_copy_only=False)


def _check_finite(number: int, step: int, done: Stepped) -> None:
    """Raises RunError where a step has left weights that are no numbers: nothing good comes of them any more."""
    for name, value in (("loss", done.loss), ("gradient_norm", done.gradient_norm)):
        if not math.isfinite(value):
            raise RunError(f"stage {number}, step {step}: the {name} is {value}; lower stage_{number}.learning_rate")
