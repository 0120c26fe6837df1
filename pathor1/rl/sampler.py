"""verl's replay buffer, without its two-second naps and without silence about what has failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from pathor1.errors import RunError

# verl polls every 2 s, which is most of a small step; one look at the queue takes about a millisecond.
POLL_SECONDS = 0.02
# How often the agents are asked for a sign of life.
PROBE_SECONDS = 5.0


class GroupSampler(ReplayBuffer):
    """Waits for whole question groups; a group that failed, or an agent that died, ends the run with its reason.

    verl would go on with a failed group's missing rollouts padded, that is, learn from less than it says, and wait
    without end for the groups of an agent that is gone.
    """

    def watch(self, agents: Sequence[Any]) -> None:
        """agents: the Ray actors that generate, each with a method `alive`."""
        self._probes = {agent: agent.alive.remote() for agent in agents}
        self._next_probe = time.monotonic() + PROBE_SECONDS

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """The next `batch_size` groups, in the order of the stream.

        verl has them in the order in which they were done, which puts the groups of short answers into a step's first
        updates, and differs from run to run. Raises RunError when one of those under way has failed.
        """
        self.poll_interval = POLL_SECONDS
        batch, metrics = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        batch.reorder(sorted(range(len(batch.keys)), key=lambda index: _place(batch.keys[index])))
        return batch, metrics

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        failed = {key for keys in self.failure_keys.values() for key in keys}
        if failed:
            tags = [tag for items in tq.kv_list().values() for key, tag in items.items() if key in failed]
            reasons = sorted({str(tag.get("reason", "no reason given")) for tag in tags})
            raise RunError(f"{len(failed)} question groups could not be generated; the first: {reasons[0]}")
        if time.monotonic() > self._next_probe:
            self._probe()

    def _probe(self) -> None:
        self._next_probe = time.monotonic() + PROBE_SECONDS
        answered, _ = ray.wait(list(self._probes.values()), num_returns=len(self._probes), timeout=0)
        try:
            ray.get(answered)
        except ray.exceptions.RayActorError as error:
            reason = " ".join(str(error).split())
            raise RunError(f"an agent process has died; `pathor1 rl --resume RUN` goes on: {reason}") from error
        self._probes = {
            agent: agent.alive.remote() if probe in answered else probe for agent, probe in self._probes.items()
        }


def _place(key: str) -> tuple[int, ...]:
    """ "17_3_0" (question, rollout, turn) -> (17, 3, 0)."""
    return tuple(int(part) for part in key.split("_"))
