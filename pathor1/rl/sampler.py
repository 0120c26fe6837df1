"""verl's replay buffer with dynamic sampling that wastes nothing: asks for groups, hears when each finishes, picks.

verl asks the queue what is in it every two seconds; here each agent answers when a group of its own has finished.
verl's filter compares shaped rewards, asks for more without end, and deletes what is left over; what is kept, dropped,
carried over, and asked for here is decided in `pathor1.rl.groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from pathor1.errors import Fault, RunError
from pathor1.rl import faults
from pathor1.rl.groups import MOST_FAILED, Group, Pool, Rules, Selection

PARTITION = "train"
# Seconds after which the wait for a group looks up, whether the run is asked to stop.
LOOK_UP = 0.5


class NothingToLearn(Exception):  # noqa: N818 (no error: a step without an update)
    """A step has too few informative groups for an update: it is skipped, and counted."""


class GroupSampler(ReplayBuffer):
    """Waits for whole question groups; `selection` is what became of those of the last step.

    ask: hands so many new questions to the agents. look_up: called now and then while it waits; what it raises ends
    the wait.
    """

    selection: Selection

    def __init__(self, rules: Rules, *, ask: Callable[[int], None], look_up: Callable[[], None]) -> None:
        self.pool = Pool(rules)
        self.ask = ask
        self.look_up = look_up
        self._reports: dict[ray.ObjectRef[list[Group]], Any] = {}

    def watch(self, agents: Sequence[Any]) -> None:
        """agents: the Ray actors that generate, each with a method `finished` that waits for its next groups."""
        self._reports = {agent.finished.remote(): agent for agent in agents}

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """The groups of a step in the order of the stream, as verl's trainer reads them from the queue.

        verl has them in the order in which they were done, which puts the groups of short answers into a step's first
        updates, and differs from run to run. Raises NothingToLearn where there are too few, RunError where
        many groups fail, and Fault where an agent or vLLM has died.
        """
        pool = self.pool
        pool.begin(global_steps)
        while not pool.done():
            if count := pool.wanted():
                pool.ask(count)
                self.ask(count)
            for group in self._finished():
                if group.error is not None:
                    print(f"dropped: sample {group.sample}: {group.error}", flush=True)
                pool.add(group)
            self._refuse_failures()
        self.selection = pool.take()
        if not self.selection.groups:
            raise NothingToLearn
        keys = [key for group in self.selection.groups for key in group.keys]
        tags = [dict(tag) for group in self.selection.groups for tag in group.tags]
        return KVBatchMeta(partition_id=partition_id, keys=keys, tags=tags), {}

    def _finished(self) -> list[Group]:
        """Waits for the next groups. Raises Fault when an agent has died."""
        ready: list[ray.ObjectRef[list[Group]]] = []
        while not ready:
            self.look_up()
            ready, _ = ray.wait(list(self._reports), num_returns=1, timeout=LOOK_UP)
        (report,) = ready
        agent = self._reports.pop(report)
        try:
            groups: list[Group] = ray.get(report)
        except ray.exceptions.RayActorError as error:
            raise Fault(f"an agent process has died: {' '.join(str(error).split())}") from error
        self._reports[agent.finished.remote()] = agent
        return groups

    def _refuse_failures(self) -> None:
        failures = self.pool.failures
        for group in failures:  # no question can be asked then, whatever it is
            if why := faults.outside_in(group.error or ""):
                raise Fault(why)
        if len(failures) > MOST_FAILED * self.pool.rules.batch:
            raise RunError(
                f"{len(failures)} question groups failed; the first: sample {failures[0].sample}: {failures[0].error}"
            )

    def forget_dropped(self) -> None:
        """Takes what the last step dropped out of verl's queue: when the step is done, as an abandoned one is not."""
        keys = [key for each in self.selection.dropped for key in each.group.keys]
        if keys:
            tq.kv_clear(keys=keys, partition_id=PARTITION)
