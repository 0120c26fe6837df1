"""A question group's pictures, processed once and stored once: rollouts carry the group's name in their place.

The agent stores what the processor made of a group's pictures in the queue; the training engine looks it up where the
forward pass runs. verl would store it with each of the group's n rollouts, and send it n times to each pass.

verl imports this module in its workers (`model.external_lib`), where it registers the engine for this machine's
device and vendor, which verl prefers to its own for the device alone. Importing it mends the batches that verl's engine
gets, too (`ragged_positions`), and where it meets vLLM (`pathor1.backends.weight_sockets`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.utils.device import get_device_name, get_vendor
from verl.utils.tensordict_utils import assign_non_tensor_stack, list_of_dict_to_tensordict, unwrap_non_tensor_data
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.rollout import base

from pathor1 import interpreter
from pathor1.rl import one_pass, ragged_positions
from pathor1.weights_only import weights_only

# Of the queue; verl's own are "train" and "val".
PARTITION = "pictures"
# What a rollout has instead of its pictures: {GROUP: the group's name}.
GROUP = "group"

Vision = Mapping[str, torch.Tensor]

ragged_positions.install()
base._ROLLOUT_REGISTRY["vllm", "async"] = "pathor1.backends.weight_sockets.Adapter"


async def store(group: str, vision: Vision) -> dict[str, str]:
    """Stores what the processor made of a group's pictures; returns what its rollouts carry, {} without pictures."""
    if not vision:
        return {}
    fields = list_of_dict_to_tensordict([{"vision": dict(vision)}])
    await tq.async_kv_batch_put(keys=[group], fields=fields, tags=[{}], partition_id=PARTITION)
    return {GROUP: group}


def fetch(groups: Sequence[str]) -> dict[str, Vision]:
    """The stored pictures of these groups, each fetched once."""
    distinct = list(dict.fromkeys(groups))
    if not distinct:
        return {}
    data = tq.kv_batch_get(keys=distinct, partition_id=PARTITION, select_fields=["vision"])
    found: list[Vision] = [unwrap_non_tensor_data(vision) for vision in data["vision"]]
    return dict(zip(distinct, found, strict=True))


def clear_all_but(groups: Iterable[str]) -> None:
    """Removes the pictures of all groups but these: of those that were trained on, filtered, or failed."""
    stored = (tq.kv_list(PARTITION) or {}).get(PARTITION, {})
    stale = sorted(set(stored) - set(groups))
    if stale:
        tq.kv_clear(keys=stale, partition_id=PARTITION)


@EngineRegistry.register(
    model_type="language_model",
    backend=["fsdp", "fsdp2"],
    # As verl looks for one: these two variables win, and on a CPU `pathor1.backends` sets the first.
    device=os.getenv("VERL_ENGINE_DEVICE") or get_device_name(),
    vendor=os.getenv("VERL_ENGINE_VENDOR") or get_vendor(),
)
class PicturesOnceEngine(FSDPEngineWithLMHead):
    """verl's engine, which looks up the pictures of a micro-batch's groups, and reads checkpoints as data.

    Rollouts that come to be learned from without the old policy's log-probabilities get them of the same pass.
    """

    def initialize(self) -> None:
        super().initialize()
        interpreter.settle()

    def load_checkpoint(self, *arguments: Any, **options: Any) -> None:
        with weights_only():
            super().load_checkpoint(*arguments, **options)

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        if loss_function is not None and one_pass.OLD not in micro_batch.keys():  # noqa: SIM118 (a TensorDict)
            loss_function = one_pass.measuring(loss_function)
        return super().forward_step(micro_batch, loss_function, forward_only)

    def prepare_model_inputs(self, micro_batch: TensorDict) -> Any:
        carried = [unwrap_non_tensor_data(entry) for entry in micro_batch.get("multi_modal_inputs", [])]
        pictures = fetch([entry[GROUP] for entry in carried if GROUP in entry])
        # A rollout that verl adds to fill a batch carries nothing.
        visions = [dict(pictures[entry[GROUP]]) if GROUP in entry else dict(entry) for entry in carried]
        if visions:
            micro_batch = micro_batch.copy()
            assign_non_tensor_stack(micro_batch, "multi_modal_inputs", visions)
        return super().prepare_model_inputs(micro_batch)
