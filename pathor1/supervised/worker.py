"""What every process of a supervised stage does: DeepSpeed's engine, a step for each batch, checkpoints, the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathor1.data.dealer import Deal, Share, fetched
from pathor1.data.stream import StreamState
from pathor1.ray_ranks import Begun, begun, check_finite, dealing, feed, metrics_log, refusing
from pathor1.ray_train import Job
from pathor1.recipe import Model
from pathor1.supervised import checkpoint, engine, parts
from pathor1.supervised.batches import Batch, Collate, from_row
from pathor1.supervised.encode import load_processor
from pathor1.supervised.engine import Stepped
from pathor1.supervised.passes import Passes, SampleRow
from pathor1.training import Stage

# In a run's folder, while it goes on from a checkpoint of another number of ranks.
UNIVERSAL = ".universal"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageJob(Job):
    """What the training processes of a stage are told.

    table: the recipe's table that the stage is; start: the model it begins with; out: the folder of the trained model,
    None = only in checkpoints.
    """

    table: str
    model: Model
    start: str
    training: Stage
    deal: Deal[SampleRow, Passes]
    out: Path | None


def run(config: dict[str, Any]) -> None:
    """Trains on this rank: what Ray Train calls."""
    refusing(train, config["job"])


def train(job: StageJob) -> None:
    """Runs the steps of a stage on this rank and saves the model; a stage that has checkpoints goes on behind the last.

    Raises DataError where too many samples cannot be used, RunError where the loss is no number any more.
    """
    import ray.train
    import torch

    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    start = begun(job, rank)
    universal = _universal(start, rank, ranks)
    saved = 0.0
    with (
        dealing(job.deal, rank, ranks, start.stream, start.step) as dealer,
        metrics_log(job, rank, start.step) as log,
    ):
        processor = load_processor(job.start)
        batches = _batches(Collate.of(processor))
        steps = feed(dealer, rank, range(start.step + 1, job.steps + 1), batches)
        torch.manual_seed(job.seed)
        trained = _engine(job, processor, start, universal)
        for step, share, passes, waited in steps:
            part: Passes = share.part
            started = time.monotonic() - waited
            torch.manual_seed(hash((job.seed, step, rank)))  # what is random is a function of these alone
            done = engine.step(trained, passes, learned=part.learned, sources=len(part.sources), stop=job.stop.exists())
            check_finite({"loss": sum(done.losses), "gradient_norm": done.gradient_norm}, f"step {step}", job.table)
            if log is not None:
                seconds = time.monotonic() - started
                times = {"seconds/step": seconds, "seconds/data": waited, "seconds/checkpoint": saved}
                log.write(step, {**_values(share, done), **times, "tokens_per_second": part.tokens / seconds})
            last, saved = step == job.steps, 0.0
            if job.checkpoints and (last or done.stop or step % job.training.save_every == 0):
                started = time.monotonic()
                _save(trained, processor, job, job.checkpoints, step, share.stream)
                saved = time.monotonic() - started
            if done.stop and not last:
                return
    if job.out is not None:
        checkpoint.save_model(trained, processor, job.out, lora=job.training.lora)


def _universal(start: Begun, rank: int, ranks: int) -> Path | None:
    """The checkpoint in the form for other numbers of ranks, made by the first rank; None = as many have written it."""
    import torch.distributed as dist

    if start.path is None or start.ranks == ranks:
        return None
    universal = start.path.parent.parent / UNIVERSAL
    if rank == 0:
        checkpoint.make_universal(start.path, universal)
    dist.barrier()
    return universal


def _batches(collate: Collate) -> Callable[[Share[Passes]], list[Batch]]:
    """What makes a rank's share of a step into a batch for each forward pass."""

    def made(share: Share[Passes]) -> list[Batch]:
        tables = fetched(share.part.rows())
        return [
            collate([[(from_row(tables[row.block], row.index), source) for row, source in each] for each in rows])
            for rows in share.part.passes
        ]

    return made


def _engine(job: StageJob, processor: Any, start: Begun, universal: Path | None) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    from pathor1.supervised.loss import AssistantLoss

    model = AutoModelForImageTextToText.from_pretrained(
        job.start, dtype=getattr(torch, job.model.dtype), attn_implementation=job.model.attention
    )
    model.train()
    parts.choose(model, job.training)
    if job.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    module = AssistantLoss(model, processor.image_processor)
    made = engine.build(module, job.model, job.training, gpu=job.gpu, universal=universal is not None)
    if start.path is not None:
        checkpoint.load(made, start.path, universal)
    return made


def _save(trained: Any, processor: Any, job: StageJob, root: Path, step: int, stream: StreamState) -> None:
    checkpoint.save(
        trained,
        processor,
        root,
        step,
        stream=stream,
        recipe=job.text,
        lora=job.training.lora,
        keep=job.training.keep_checkpoints,
    )


def _values(share: Share[Passes], done: Stepped) -> dict[str, float]:
    """A step's numbers: what it learned, by source too where there are several, and of what."""
    part = share.part
    each = dict(zip(part.sources, zip(done.losses, part.learned_by, strict=True), strict=True))
    by_source = {f"loss/{name}": total / count for name, (total, count) in each.items()} if len(each) > 1 else {}
    return {
        "loss": sum(done.losses) / part.learned,
        **by_source,
        "learning_rate": done.learning_rate,
        "gradient_norm": done.gradient_norm,
        "tokens": float(part.tokens),
        "tokens/learned": float(part.learned),
        "tokens/padding_share": 1 - part.tokens / part.places,
        "data/left_out": float(share.left_out),
        "data/left_out_share": share.left_out_share,
    }
