"""verl's replay buffer, without its two-second naps and without silence about failed groups."""

from __future__ import annotations

from typing import Any

import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from pathor1.errors import RunError

# verl polls every 2 s, which is most of a small step; one look at the queue takes about a millisecond.
POLL_SECONDS = 0.02


class GroupSampler(ReplayBuffer):
    """Waits for whole question groups; a group that failed ends the run with its reason.

    verl would go on with a failed group's missing rollouts padded, that is, learn from less than it says.
    """

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """The next `batch_size` groups. Raises RunError when one of those under way has failed."""
        self.poll_interval = POLL_SECONDS
        return super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        failed = {key for keys in self.failure_keys.values() for key in keys}
        if failed:
            tags = [tag for items in tq.kv_list().values() for key, tag in items.items() if key in failed]
            reasons = sorted({str(tag.get("reason", "no reason given")) for tag in tags})
            raise RunError(f"{len(failed)} question groups could not be generated; the first: {reasons[0]}")
