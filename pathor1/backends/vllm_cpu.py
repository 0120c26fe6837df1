"""Reloads the actor's weights into vLLM's CPU engine (named in verl's config as the worker extension)."""

from __future__ import annotations

from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver

from pathor1.backends import cpu_threads, vllm_seeds
from pathor1.backends.reload_log import quiet_about, without_weights
from pathor1.backends.weight_sockets import WorkerExtension

# vLLM loads this module in its worker, before the worker says how many threads it has.
vllm_seeds.install()
cpu_threads.take()


class CpuWorkerExtension(WorkerExtension):
    """verl's worker extension, with the one method that cannot work on a CPU.

    On the CPU vLLM repacks linear weights after loading and drops the originals, so loading into the live model
    fails; its model runner can restore, load and repack instead.
    """

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Receives all weights from the actor through shared memory and loads them. LoRA is not supported here."""
        if peft_config and base_sync_done:
            raise NotImplementedError("LoRA adapters cannot be sent to vLLM's CPU engine; train without LoRA on a CPU")
        weights: list[tuple[str, torch.Tensor]] = []

        def keep(bucket: list[tuple[str, torch.Tensor]], is_last: bool) -> None:
            # The bucket lies in a shared buffer that is unmapped once the last one has been received.
            weights.extend((name, tensor.clone()) for name, tensor in bucket)

        receiver = BucketedWeightReceiver(
            zmq_handle=self._get_zmq_handle(), device=torch.device("cpu"), use_shm=use_shm
        )
        receiver.receive_weights(on_bucket_received=keep)
        with quiet_about(without_weights(self.model_runner.model)):
            self.model_runner.reload_weights(weights_iterator=iter(weights))
