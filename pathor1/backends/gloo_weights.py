"""verl's way of sending weights from the ranks that train to vLLM's own machines, without a GPU: gloo broadcasts.

verl names it in `rollout.checkpoint_engine.custom_backend_module` and imports it where it sends and receives; its own
engines send by NCCL, RDMA and the like. Rank 0 of those that train sends to all of vLLM's; the others take part where
their shares of a weight are put together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
from verl.workers.rollout.utils import ensure_async_iterator

from pathor1.backends import network
from pathor1.backends.loopback_store import tcp_store

NAME = "gloo"
# Within which a process that takes part has to answer.
TIME = timedelta(minutes=10)
# What is sent of a weight before it: its name and its shape, as text, in so many bytes. Empty text = there are no more.
HEADER = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where those that take part meet: the store of the sender; `round` is new with each update."""

    host: str
    port: int
    round: int


@CheckpointEngineRegistry.register(NAME)
class GlooWeights(CheckpointEngine):
    """One process's part: the sender is rank 0, vLLM's are 1 and on, and -1 is none of these."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.is_master = is_master
        self.rounds = 0
        self.store: TCPStore | None = None
        self.group: ProcessGroupGloo | None = None

    def prepare(self) -> Meeting | None:  # pyright: ignore[reportIncompatibleMethodOverride]  (verl: "metadata")
        """The sender's meeting place; None of the others."""
        network.choose()
        if not self.is_master:
            return None
        if self.store is None:
            host = ray.util.get_node_ip_address().strip("[]")
            self.store = tcp_store(host, 0, is_master=True, wait_for_workers=False)
        self.rounds += 1
        return Meeting(host=self.store.host, port=self.store.port, round=self.rounds)

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Each process's arguments of `init_process_group`: those that train, and vLLM's."""
        size, meeting = rollout_world_size + 1, next(each for each in metadata if each is not None)
        ranks = ([0, *[-1] * (actor_wg_world_size - 1)], list(range(1, size)))
        training, generating = (
            {"rank": part, "size": [size] * len(part), "meeting": [meeting] * len(part)} for part in ranks
        )
        return training, generating

    def init_process_group(self, rank: int, size: int, meeting: Meeting) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Meets the others."""
        if rank < 0:
            return
        store = self.store or TCPStore(meeting.host, meeting.port, is_master=False)
        self.group = ProcessGroupGloo(PrefixStore(f"round-{meeting.round}", store), rank, size, TIME)

    def finalize(self) -> None:
        """Leaves them."""
        self.group = None

    async def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        """Sends all weights. Where the process is not the sender, it has its part in making them."""
        async for name, weight in ensure_async_iterator(weights):
            if self.group is not None:
                self._broadcast(_header(name, weight))
                self._broadcast(weight.detach().contiguous().view(-1).view(torch.uint8))
        if self.group is not None:
            self._broadcast(torch.zeros(HEADER, dtype=torch.uint8))

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Names and weights, as they come."""
        while text := bytes(self._broadcast(torch.zeros(HEADER, dtype=torch.uint8)).tolist()).rstrip(b"\0"):
            name, dtype, *shape = text.decode().split("|")
            weight = torch.empty([int(size) for size in shape], dtype=getattr(torch, dtype))
            self._broadcast(weight.view(-1).view(torch.uint8))
            yield name, weight

    def _broadcast(self, data: torch.Tensor) -> torch.Tensor:
        assert self.group is not None
        options = BroadcastOptions()
        options.rootRank = 0
        self.group.broadcast([data], options).wait()
        return data


def _header(name: str, weight: torch.Tensor) -> torch.Tensor:
    text = "|".join([name, str(weight.dtype).removeprefix("torch."), *map(str, weight.shape)]).encode()
    return torch.tensor(list(text.ljust(HEADER, b"\0")), dtype=torch.uint8)
