"""DeepSpeed's engine for a supervised stage, and a step of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pathor1.recipe import Model
from pathor1.supervised.batches import Batch
from pathor1.training import Stage

# Shorter memory of squared gradients than AdamW's 0.999: a supervised stage is hundreds of steps, not millions.
BETAS = (0.9, 0.95)
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """What came of a step. losses: the sum over each source's learned tokens on all ranks (nats); rate: its own."""

    losses: list[float]
    gradient_norm: float
    learning_rate: float
    stop: bool


def deepspeed_config(model: Model, training: Stage, *, gpu: bool, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's config for a stage. universal: a checkpoint is loaded that other ranks have written."""
    adam: dict[str, Any] = {"lr": training.learning_rate, "betas": BETAS, "weight_decay": training.weight_decay}
    # DeepSpeed's own Adams are compiled at the first use, which not every machine can do; torch's, which goes through
    # the weights once for all that it does, is slow where DeepSpeed keeps the optimizer of a GPU in the node's memory.
    adam |= {"torch_adam": False} if gpu and "optimizer" in training.offload else {"torch_adam": True, "fused": True}
    offloaded = {"device": "cpu", "pin_memory": gpu}
    zero: dict[str, Any] = {"stage": training.zero_stage}
    if not gpu and training.zero_stage == 2 and not training.offload:
        # DeepSpeed's own copies each gradient to a buffer, twice, against the fragments of a GPU's memory.
        zero["contiguous_gradients"] = False
    if "optimizer" in training.offload:
        zero["offload_optimizer"] = offloaded
    if "parameters" in training.offload:
        zero["offload_param"] = offloaded
    return {
        "train_micro_batch_size_per_gpu": 1,
        # A step has as many passes as its samples need, and `engine.step` is its end.
        "managed_gradient_accumulation": False,
        "gradient_clipping": MAX_GRADIENT_NORM,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": model.dtype == "bfloat16"},
        "steps_per_print": 1_000_000_000,
        "checkpoint": {"load_universal": universal},
    }


def build(module: Any, model: Model, training: Stage, *, gpu: bool, universal: bool = False) -> Any:
    """DeepSpeed's engine around a `loss.AssistantLoss`, with AdamW and the stage's schedule."""
    import deepspeed
    import torch.distributed as dist
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    def schedule(optimizer: Any) -> Any:
        return get_cosine_with_min_lr_schedule_with_warmup(
            optimizer,
            num_warmup_steps=training.warmup_steps,
            num_training_steps=training.steps,
            min_lr_rate=training.final_learning_rate_fraction,
        )

    if deepspeed.get_accelerator().device_name() == "cpu":
        # By a C++ compiler, for a minute, DeepSpeed would make a way of its own through shared memory; gloo has one.
        deepspeed.ops.__compatible_ops__ = {}
    config = deepspeed_config(model, training, gpu=gpu, universal=universal)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[parameter for parameter in module.parameters() if parameter.requires_grad],
        lr_scheduler=schedule,
        config=config,
    )
    if dist.get_world_size() == 1 and config["zero_optimization"].get("contiguous_gradients") is False:
        # The mean of one rank's gradients is what they are; DeepSpeed copies them together and apart again for it.
        engine.optimizer.buffered_reduce_fallback = lambda *_, **__: None
    return engine


def step(engine: Any, passes: Sequence[Batch], *, learned: int, sources: int, stop: bool = False) -> Stepped:
    """One optimizer step on the mean over the learned tokens of all ranks: a token counts the same wherever it is.

    learned: of all ranks' passes together; every rank has as many passes. stop: this rank would stop behind the step,
    which all are told.
    """
    import torch
    import torch.distributed as dist

    ranks = dist.get_world_size()
    # The last place: how many ranks would stop.
    sums = torch.zeros(sources + 1, device=engine.device)
    sums[-1] = float(stop)
    for batch in passes:
        tensors = {name: tensor.to(engine.device, non_blocking=True) for name, tensor in batch.tensors().items()}
        losses = engine(**tensors, number_of_sources=sources)
        # DeepSpeed takes the mean of the ranks' gradients, and these are shares of one sum.
        engine.backward(losses.sum() * (ranks / learned))
        sums[:-1] += losses.detach()
    rate = engine.get_lr()[0]
    engine.step()
    dist.all_reduce(sums)
    *totals, asked = sums.tolist()
    return Stepped(
        losses=totals,
        gradient_norm=float(engine.get_global_grad_norm()),
        learning_rate=rate,
        stop=asked > 0,
    )
