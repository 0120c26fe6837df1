"""What every process of contrastive training does: the stages in turn, a step for each batch, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pathor1.checkpoints import MODEL
from pathor1.clip import checkpoint, models
from pathor1.clip.encode import PairRow, Pairs
from pathor1.clip.models import Found
from pathor1.clip.step import Stepped, Trainer
from pathor1.contrastive import ClipModel, ClipRecipe
from pathor1.data.dealer import Deal, Share, fetched
from pathor1.data.stream import StreamState
from pathor1.ray_ranks import Begun, begun, check_finite, dealing, feed, metrics_log, refusing
from pathor1.ray_train import Job
from pathor1.tracking.log import MetricsLog


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipJob(Job):
    """What the training processes are told. model: what it begins with; deals: of each stage."""

    recipe: ClipRecipe
    model: Found
    deals: Sequence[Deal[PairRow, Pairs]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A rank's pairs of a step: pixels [n, height, width, 3] uint8, tokens [n, context] int64."""

    pixels: Any
    tokens: Any


def run(config: dict[str, Any]) -> None:
    """Trains on this rank: what Ray Train calls."""
    refusing(train, config["job"])


def train(job: ClipJob) -> None:
    """Runs the stages on this rank, from their beginning or behind the last checkpoint.

    Raises DataError where too many samples cannot be used, RunError where the loss is no number any more.
    """
    import ray.train
    import torch

    context = ray.train.get_context()
    rank = context.get_world_rank()
    start = begun(job, rank)
    torch.manual_seed(job.seed)  # the same random weights on every rank
    model = _model(job, start)
    tokenizer = models.tokenizer(job.model) if rank == 0 else None
    with metrics_log(job, rank, start.step) as log:
        before = 0
        for number, stage in enumerate(job.recipe.stages, start=1):
            done = min(max(start.step - before, 0), stage.steps)
            if done < stage.steps and _stage(_Stage(job, number, before, model, tokenizer, log), start, done):
                return
            before += stage.steps


def _stage(stage: _Stage, start: Begun, done: int) -> bool:
    """Runs a stage behind its first `done` steps; True where the run was asked to stop on the way."""
    job, trainer, stream = stage.job, stage.trainer, None
    if done and start.path is not None:
        checkpoint.load_optimizer(trainer.optimizer, start.path)
        stream = start.stream

    def made(share: Share[Pairs]) -> Batch:
        return batch(share.part.rows, fetched(share.part.rows), job.model)

    with dealing(job.deals[stage.number - 1], trainer.rank, trainer.ranks, stream, done) as dealer:
        return stage.run(feed(dealer, trainer.rank, range(done + 1, trainer.stage.steps + 1), made))


class _Stage:
    """The steps of one stage. before: steps of the stages before it."""

    def __init__(
        self, job: ClipJob, number: int, before: int, model: Any, tokenizer: Any, log: MetricsLog | None
    ) -> None:
        recipe = job.recipe
        self.job, self.number, self.before = job, number, before
        self.trainer = Trainer(model, recipe.stages[number - 1], dtype=recipe.model.dtype, seed=recipe.seed)
        self.tokenizer, self.log = tokenizer, log
        self.saved = 0.0

    def run(self, steps: Iterator[tuple[int, Share[Pairs], Batch, float]]) -> bool:
        """All steps that are left; True where the run was asked to stop on the way."""
        stage, job = self.trainer.stage, self.job
        for step, share, pairs, waited in steps:
            started = time.monotonic() - waited
            done = self.trainer.step(pairs.pixels, pairs.tokens, number=step, stop=job.stop.exists())
            where = f"stage {self.number}, step {step}"
            check_finite({"loss": done.loss, "gradient_norm": done.gradient_norm}, where, f"stage_{self.number}")
            if self.log is not None:
                seconds = time.monotonic() - started
                times = {"seconds/step": seconds, "seconds/data": waited, "seconds/checkpoint": self.saved}
                self.log.write(self.before + step, {**self._values(share, done), **times} | self._rate(seconds))
            last, self.saved = step == stage.steps, 0.0
            if last or done.stop or step % stage.save_every == 0:
                started = time.monotonic()
                self._save(step, share.stream)
                self.saved = time.monotonic() - started
            if done.stop and self.before + step < job.steps:
                return True
        return False

    def _rate(self, seconds: float) -> dict[str, float]:
        return {"pairs_per_second": self.trainer.stage.batch_size / seconds}

    def _values(self, share: Share[Pairs], done: Stepped) -> dict[str, float]:
        return {
            "stage": float(self.number),
            "loss": done.loss,
            "learning_rate": done.learning_rate,
            "gradient_norm": done.gradient_norm,
            "similarity_scale": done.scale,
            "captions/full": share.part.full / self.trainer.stage.batch_size,
            "data/left_out": float(share.left_out),
            "data/left_out_share": share.left_out_share,
        }

    def _save(self, step: int, stream: StreamState) -> None:
        import torch.distributed as dist

        job = self.job
        assert job.checkpoints is not None
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


def _model(job: ClipJob, start: Begun) -> Any:
    from ray.train.torch import get_device

    found = job.model if start.path is None else models.find(ClipModel(weights=str(start.path / MODEL)))
    model = models.build(found, device=str(get_device()))
    model.train()
    if job.recipe.model.gradient_checkpointing:
        model.set_grad_checkpointing()
    return model


def batch(rows: Sequence[PairRow], tables: Mapping[Any, pa.Table], model: Found) -> Batch:
    """A rank's pairs as tensors. tables: by the blocks that the rows lie in."""
    import torch

    height, width = model.image_size
    pixels = np.empty((len(rows), height, width, 3), dtype=np.uint8)
    tokens = np.zeros((len(rows), model.context_length), dtype=np.int64)
    columns = {block: (table["pixels"], table["tokens"]) for block, table in tables.items()}
    for place, row in enumerate(rows):
        cut, text = _values(columns[row.block], row)
        pixels[place] = cut.reshape(height, width, 3)
        tokens[place, : len(text)] = text
    return Batch(pixels=torch.from_numpy(pixels), tokens=torch.from_numpy(tokens))


def _values(columns: tuple[Any, Any], row: PairRow) -> tuple[Any, Any]:
    pixels, tokens = columns
    cut = np.frombuffer(pixels[row.index].as_buffer(), dtype=np.uint8)
    return cut, tokens[row.index].values.to_numpy(zero_copy_only=False)
