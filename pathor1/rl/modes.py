"""How generating and learning take turns: verl's three trainers, each with what is ours.

    sync             generate all answers of a step, then learn from them, with one model at a time
    colocate_async   the same accelerators, but a step begins to learn as soon as enough groups are there: what vLLM
                     has under way is interrupted, and goes on with the new weights
    separate_async   accelerators of its own for vLLM, which generates all the time; weights go there behind a step

What the asynchronous modes learn from was said by older weights in part; each token is weighed for it.
"""

from __future__ import annotations

import logging
from typing import Any

from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync, trainer_separate_async

from pathor1.rl.client import InterruptedClient
from pathor1.rl.pools import OwnReplica
from pathor1.rl.trainer import RLTrainer


class Sync(RLTrainer, PPOTrainerSync):
    """One after the other."""


class ColocateAsync(RLTrainer, PPOTrainerColocateAsync):
    """In turns, on the same accelerators."""

    client = InterruptedClient


class SeparateAsync(RLTrainer, PPOTrainerSeparateAsync):
    """At the same time, on accelerators of their own; a step learns in parts, one for each of its updates."""

    client = InterruptedClient
    replica = OwnReplica

    @property
    def engines(self) -> Any:
        return self.standalone_server_manager

    def _setup(self) -> None:
        # verl's module logs by `info(..., flush=True)`, which is an error where that is shown.
        trainer_separate_async.logger.setLevel(logging.WARNING)
        super()._setup()

    def _quiet_vllm(self) -> None:
        """Nothing: what vLLM does, and holds, is in nobody's way."""


TRAINERS: dict[str, type[RLTrainer]] = {
    "sync": Sync,
    "colocate_async": ColocateAsync,
    "separate_async": SeparateAsync,
}
