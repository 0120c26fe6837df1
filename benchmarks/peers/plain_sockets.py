"""The engine's side of stock verl on a CPU: pathor1's, which can load weights there, at the sockets that verl names."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from pathor1.backends.vllm_cpu import CpuWorkerExtension


class PlainSockets(CpuWorkerExtension):
    """A run of pathor1 has sockets of its own; the rank of stock verl knows nothing of them."""

    def _get_zmq_handle(self) -> Any:
        return vLLMColocateWorkerExtension._get_zmq_handle(self)
