"""What every process of a supervised stage does: DeepSpeed's engine, a step for each batch, checkpoints, the model."""

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

from pathor1 import checkpoints, files
from pathor1.data.stream import StreamState
from pathor1.errors import RunError, UserError
from pathor1.recipe import Model
from pathor1.supervised import checkpoint, engine, parts
from pathor1.supervised.batches import Batch, Collate, from_row
from pathor1.supervised.dealer import Deal, Dealer, Share
from pathor1.supervised.encode import load_processor
from pathor1.supervised.engine import Stepped
from pathor1.tracking.log import MetricsLog
from pathor1.training import Stage

# Steps whose batches are made ahead.
AHEAD = 2
# In a run's folder, while it goes on from a checkpoint of another number of ranks.
UNIVERSAL = ".universal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Where checkpoints go, and when."""

    root: Path
    every: int
    keep: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the training processes are told.

    table: the recipe's table that the stage is; recipe: the run's, as TOML; start: the model it begins with; out: the
    folder of the trained model, None = only in checkpoints; saving: None = no checkpoints. stop, refused: files by
    which the driver asks for the end, and is told why the input is wrong.
    """

    name: str
    table: str
    recipe: str
    model: Model
    start: str
    training: Stage
    seed: int
    gpu: bool
    deal: Deal
    metrics: Path  # one JSON object a step, written by rank 0
    tensorboard: Path
    trackers: Sequence[str]
    out: Path | None
    saving: Saving | None
    stop: Path
    refused: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a stage goes on from; step 0 and None = from its beginning. universal: the form for other ranks."""

    step: int = 0
    path: Path | None = None
    universal: Path | None = None
    stream: StreamState | None = None


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
    """Runs the steps of a stage on this rank and saves the model; a stage that has checkpoints goes on behind the last.

    Raises DataError where too many samples cannot be used, RunError where the loss is no number any more.
    """
    import ray.train
    import torch

    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    begun = _begin(job, rank, ranks)
    saved = 0.0
    with _dealer(job, rank, ranks, begun) as dealer, _log(job, rank, begun.step) as log:
        processor = load_processor(job.start)
        feed = _feed(dealer, rank, range(begun.step + 1, job.training.steps + 1), Collate.of(processor))
        torch.manual_seed(job.seed)
        trained = _engine(job, processor, begun)
        for step, share, batches, waited in feed:
            started = time.monotonic() - waited
            torch.manual_seed(hash((job.seed, step, rank)))  # what is random is a function of these alone
            done = engine.step(
                trained, batches, learned=share.learned, sources=len(share.sources), stop=job.stop.exists()
            )
            _check_finite(job, step, done)
            if log is not None:
                seconds = time.monotonic() - started
                times = {"seconds/step": seconds, "seconds/data": waited, "seconds/checkpoint": saved}
                log.write(step, {**_values(share, done), **times, "tokens_per_second": share.tokens / seconds})
            last, saved = step == job.training.steps, 0.0
            if job.saving and (last or done.stop or step % job.saving.every == 0):
                started = time.monotonic()
                _save(trained, processor, job, job.saving, step, share.stream)
                saved = time.monotonic() - started
            if done.stop and not last:
                return
    if job.out is not None:
        checkpoint.save_model(trained, processor, job.out, lora=job.training.lora)


def _begin(job: Job, rank: int, ranks: int) -> Begun:
    """The last checkpoint, which the first rank looks for, and tells the others."""
    import torch.distributed as dist

    if job.saving is None:
        return Begun()
    told: list[Begun] = [Begun()]
    if rank == 0:
        root = job.saving.root
        checkpoints.remove_incomplete(root)
        path = checkpoints.latest(root)
        if path is not None:
            manifest = checkpoints.read(path)
            checkpoints.verify(path, manifest.files)
            universal = root.parent / UNIVERSAL if manifest.ranks != ranks else None
            if universal is not None:
                checkpoint.make_universal(path, universal)
            told = [Begun(step=manifest.step, path=path, universal=universal, stream=manifest.stream)]
    dist.broadcast_object_list(told, src=0)
    return told[0]


@contextmanager
def _log(job: Job, rank: int, done: int) -> Iterator[MetricsLog | None]:
    """Where the steps' numbers go, on the first rank; None on the others."""
    if rank:
        yield None
        return
    constants = {"steps_planned": float(job.training.steps), "limit/left_out_share": job.deal.max_bad_fraction}
    with MetricsLog(
        job.metrics,
        job.tensorboard,
        run=job.name,
        keep_up_to=done,
        trackers=job.trackers,
        recipe=tomllib.loads(job.recipe),
        constants=constants,
    ) as log:
        yield log


@contextmanager
def _dealer(job: Job, rank: int, ranks: int, begun: Begun) -> Iterator[Any]:
    """The stage's dealer, which the first rank starts: while models are loaded, it reads ahead."""
    import ray
    import torch.distributed as dist

    told = [f"dealer-{uuid.uuid4().hex}"]
    made: Any = None
    if rank == 0:
        made = ray.remote(num_cpus=0)(Dealer).options(name=told[0])
        made = made.remote(job.deal, ranks=ranks, start=begun.stream, done=begun.step)
    dist.broadcast_object_list(told, src=0)
    try:
        yield made or ray.get_actor(told[0])
    finally:
        if made is not None:
            ray.kill(made)


def _feed(dealer: Any, rank: int, steps: range, collate: Collate) -> Iterator[tuple[int, Share, list[Batch], float]]:
    """Each step with this rank's share and batches, made beside the training, and how long it waited for them (s)."""
    import ray

    def made(step: int) -> tuple[Share, list[Batch]]:
        share: Share = ray.get(dealer.share.remote(step, rank))
        blocks = list({row.block: None for rows in share.passes for each in rows for row, _ in each})
        tables = dict(zip(blocks, ray.get(blocks), strict=True))
        passes = [
            [[(from_row(tables[row.block], row.index), source) for row, source in each] for each in rows]
            for rows in share.passes
        ]
        return share, [collate(rows) for rows in passes]

    with ThreadPoolExecutor(max_workers=1) as beside:
        waiting: list[Future[tuple[Share, list[Batch]]]] = [beside.submit(made, step) for step in steps[:AHEAD]]
        for place, step in enumerate(steps):
            started = time.monotonic()
            share, batches = waiting.pop(0).result()
            if place + AHEAD < len(steps):
                waiting.append(beside.submit(made, steps[place + AHEAD]))
            yield step, share, batches, time.monotonic() - started


def _engine(job: Job, processor: Any, begun: Begun) -> Any:
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
    made = engine.build(module, job.model, job.training, gpu=job.gpu, universal=begun.universal is not None)
    if begun.path is not None:
        checkpoint.load(made, begun.path, begun.universal)
    return made


def _save(trained: Any, processor: Any, job: Job, saving: Saving, step: int, stream: StreamState) -> None:
    checkpoint.save(
        trained,
        processor,
        saving.root,
        step,
        stream=stream,
        recipe=job.recipe,
        lora=job.training.lora,
        keep=saving.keep,
    )


def _values(share: Share, done: Stepped) -> dict[str, float]:
    """A step's numbers: what it learned, by source too where there are several, and of what."""
    each = dict(zip(share.sources, zip(done.losses, share.learned_by, strict=True), strict=True))
    by_source = {f"loss/{name}": total / count for name, (total, count) in each.items()} if len(each) > 1 else {}
    return {
        "loss": sum(done.losses) / share.learned,
        **by_source,
        "learning_rate": done.learning_rate,
        "gradient_norm": done.gradient_norm,
        "tokens": float(share.tokens),
        "tokens/learned": float(share.learned),
        "tokens/padding_share": 1 - share.tokens / share.places,
        "data/left_out": float(share.left_out),
        "data/left_out_share": share.left_out_share,
    }


def _check_finite(job: Job, step: int, done: Stepped) -> None:
    """Raises RunError where a step has left weights that are no numbers: nothing good comes of them any more."""
    for name, value in (("loss", sum(done.losses)), ("gradient_norm", done.gradient_norm)):
        if not math.isfinite(value):
            raise RunError(f"step {step}: the {name} is {value}; lower {job.table}.learning_rate")
