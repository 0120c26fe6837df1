"""Where a rank hands its weights to its vLLM engine: at sockets of their run's own; on every kind of machine.

verl names a socket in /tmp by Ray's number of the job, and each Ray that is started on a machine counts its jobs from
one. Of two runs on one machine one could take the other's socket away, which then waits without end, or whose engine
goes on with the other's weights. `pathor1.rl.run` gives each attempt of a run a word of its own for these names.
"""

from __future__ import annotations

import os
from typing import Any

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter


def own(address: str) -> str:
    """verl's address of a socket, with the run's word before its name."""
    folder, _, name = address.rpartition("/")
    return f"{folder}/{os.environ['PATHOR1_WEIGHT_SOCKETS']}-{name}"


class Adapter(ServerAdapter):
    """A rank's side, which `pathor1.rl.pictures` registers with verl."""

    zmq_handle: str

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.zmq_handle = own(self.zmq_handle)


class WorkerExtension(vLLMColocateWorkerExtension):
    """The engine's side, named in verl's config."""

    def _get_zmq_handle(self) -> str:
        return own(super()._get_zmq_handle())
