"""What every process of a supervised stage does: DeepSpeed's engine, a step for each batch, the model saved."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from pathor1.errors import DataError, RunError
from pathor1.files import replacing
from pathor1.recipe import Model, WarmStart
from pathor1.supervised.batches import Batch, Collate
from pathor1.supervised.encode import IGNORED, load_processor

# Shorter memory of squared gradients than AdamW's 0.999: a supervised stage is hundreds of steps, not millions.
BETAS = (0.9, 0.95)
MAX_GRADIENT_NORM = 1.0
# A folder that bears this file was made by a supervised stage, and may be replaced by one.
MARK = ".made-by-pathor1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the training processes are told."""

    model: Model
    stage: WarmStart
    seed: int
    metrics: Path  # one JSON object a step, written by rank 0


def train(job: Job) -> None:
    """Runs the steps of a stage on this rank, whose share of each batch comes from Ray Train, and saves the model.

    Raises DataError where the usable samples end before the steps do, RunError where the loss is no number any more.
    """
    import ray.train
    import torch

    torch.manual_seed(job.seed)
    tables = _tables(job.stage)
    with ThreadPoolExecutor(max_workers=1) as beside:
        first = beside.submit(next, tables, None)  # the stream's processes start while the model is loaded
        processor = load_processor(job.stage.model)
        engine = _engine(job, processor)
    collate = _collate(processor)
    batches = (collate(table) for table in chain([first.result()], tables) if table is not None)
    writes = ray.train.get_context().get_world_rank() == 0
    dropped, problem = 0, None
    for step in range(1, job.stage.steps + 1):
        started = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            why = f"; the last one left out: {problem}" if problem else ""
            raise DataError(f"warm_start.data has usable samples for {step - 1} of {job.stage.steps} steps{why}")
        waited = time.monotonic() - started
        dropped, problem = dropped + batch.dropped, batch.problem or problem
        values = _step(engine, batch)
        _check_finite(step, values)
        if writes:
            seconds = {"seconds/step": time.monotonic() - started, "seconds/data": waited}
            _append(job.metrics, {"step": step, **values, "samples/dropped": dropped, "problem": problem, **seconds})
    _save(engine, processor, Path(job.model.path), writes=writes)


def deepspeed_config(model: Model, stage: WarmStart) -> dict[str, Any]:
    """DeepSpeed's config for a stage."""
    adam = {"lr": stage.learning_rate, "betas": BETAS, "weight_decay": stage.weight_decay}
    return {
        "train_micro_batch_size_per_gpu": stage.batch_size // stage.workers,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": MAX_GRADIENT_NORM,
        # Its own Adams, for CPU and GPU, are compiled at the first use, which not every machine can do.
        "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": True}},
        "zero_optimization": {"stage": stage.zero_stage},
        "bf16": {"enabled": model.dtype == "bfloat16"},
        "steps_per_print": 1_000_000_000,
    }


def _engine(job: Job, processor: Any) -> Any:
    import deepspeed
    import torch
    from transformers import AutoModelForImageTextToText, get_cosine_with_min_lr_schedule_with_warmup

    from pathor1.supervised.loss import AssistantLoss

    model = AutoModelForImageTextToText.from_pretrained(
        job.stage.model, dtype=getattr(torch, job.model.dtype), attn_implementation=job.model.attention
    )
    model.train()
    if job.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def schedule(optimizer: Any) -> Any:
        return get_cosine_with_min_lr_schedule_with_warmup(
            optimizer,
            num_warmup_steps=job.stage.warmup_steps,
            num_training_steps=job.stage.steps,
            min_lr_rate=job.stage.final_learning_rate_fraction,
        )

    if deepspeed.get_accelerator().device_name() == "cpu":
        # By a C++ compiler, for a minute, DeepSpeed would make a way of its own through shared memory; gloo has one.
        deepspeed.ops.__compatible_ops__ = {}
    module = AssistantLoss(model, processor.image_processor)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[parameter for parameter in module.parameters() if parameter.requires_grad],
        lr_scheduler=schedule,
        config=deepspeed_config(job.model, job.stage),
    )
    return engine


def _tables(stage: WarmStart) -> Iterator[pa.Table]:
    """This rank's share of each batch, as rows of `encode.SCHEMA`."""
    import ray.train

    shard = ray.train.get_dataset_shard("train")
    return iter(
        shard.iter_batches(
            batch_size=stage.batch_size // stage.workers, batch_format="pyarrow", prefetch_batches=2, drop_last=True
        )
    )


def _collate(processor: Any) -> Collate:
    tokenizer = processor.tokenizer
    return Collate(pad_token=tokenizer.pad_token_id, image_token=tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def _step(engine: Any, batch: Batch) -> dict[str, float]:
    """One optimizer step on the mean over the learned tokens of all ranks: a token counts the same wherever it is."""
    import torch
    import torch.distributed as dist

    tensors = {name: tensor.to(engine.device, non_blocking=True) for name, tensor in batch.tensors().items()}
    # Learned tokens, tokens, places for tokens: their sums over ranks.
    learned = (tensors["labels"][:, 1:] != IGNORED).sum()
    counts = torch.stack([learned, tensors["attention_mask"].sum(), learned.new_tensor(batch.labels.numel())])
    dist.all_reduce(counts)
    loss = engine(**tensors) / counts[0]
    # DeepSpeed takes the mean of the ranks' gradients, and these are shares of one sum.
    engine.backward(loss * dist.get_world_size())
    rate = engine.get_lr()[0]
    engine.step()
    total = loss.detach().clone()
    dist.all_reduce(total)
    return {
        "loss": float(total),
        "learning_rate": rate,
        "gradient_norm": float(engine.get_global_grad_norm()),
        "tokens/learned": int(counts[0]),
        "tokens/padding_share": 1 - int(counts[1]) / int(counts[2]),
    }


def _check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raises RunError where a step has left weights that are no numbers: nothing good comes of them any more."""
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(values[name]):
            raise RunError(f"step {step}: the {name} is {values[name]}; lower warm_start.learning_rate")


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def _save(engine: Any, processor: Any, path: Path, *, writes: bool) -> None:
    """The trained model and its processor as a Hugging Face folder, which appears whole or not at all."""
    import torch.distributed as dist

    model = engine.module.model
    state: Any = None
    if engine.zero_optimization_stage() == 3:
        whole = engine._zero3_consolidated_16bit_state_dict()  # a collective; DeepSpeed has no public name for it
        state = {name.removeprefix("model."): tensor for name, tensor in whole.items()} if writes else None
    if writes:
        with replacing(path) as part:
            model.save_pretrained(part, state_dict=state)
            processor.save_pretrained(part)
            (part / MARK).touch()
    dist.barrier()
