"""verl's replay buffer with dynamic sampling that wastes nothing: asks for groups, hears when each finishes, picks.

verl asks the queue what is in it every two seconds; here each agent answers when a group of its own has finished.
verl's filter compares shaped rewards, asks for more without end, and deletes what is left over; what is kept, dropped,
carried over, and asked for here is decided in `pathor1.rl.groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from pathor1.errors import Fault, RunError
from pathor1.rl import faults
from pathor1.rl.groups import MOST_FAILED, Group, Pool, Rules, Selection
from pathor1.samples import Sample

PARTITION = "train"
# What stands for the number of a question that is asked to compare vLLM with the actor.
PROBE = "probe"
# Seconds after which the wait for a group looks up, whether the run is asked to stop.
LOOK_UP = 0.5


def probe_keys(count: int) -> Sequence[str]:
    """Of so many copies of an answer that nothing is learned from."""
    return [f"{PROBE}_{index}_0" for index in range(count)]


class NothingToLearn(Exception):  # noqa: N818 (no error: a step without an update)
    """A step has too few informative groups for an update: it is skipped, and counted."""


class GroupSampler(ReplayBuffer):
    """Waits for whole question groups; `selections` is what became of those of the present step, part by part.

    ask: hands so many questions to the agents, and returns them by their numbers in the run. under_way: those that have
    not been answered yet. look_up: called now and then while it waits; what it raises ends the wait.
    """

    def __init__(
        self, rules: Rules, *, ask: Callable[[int], Mapping[int, Sample]], look_up: Callable[[], None]
    ) -> None:
        self.pool = Pool(rules)
        self.ask = ask
        self.look_up = look_up
        self.under_way: dict[int, Sample] = {}
        self.known: Sample | None = None  # a question that was asked
        self.selections: list[Selection] = []
        self._reports: dict[ray.ObjectRef[list[Group]], Any] = {}

    def watch(self, agents: Sequence[Any]) -> None:
        """agents: the Ray actors that generate, each with a method `finished` that waits for its next groups."""
        self._reports = {agent.finished.remote(): agent for agent in agents}

    def ask_ahead(self, step: int) -> None:
        """Before a run's first step, `step`: asks what the rules say is asked before its time."""
        self.pool.begin_ahead(step)
        self._ask_wanted()

    def begin(self, step: int) -> None:
        """A step begins, of which `sample` then gives the parts."""
        self.pool.begin(step)
        self.selections = []

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict[str, Any]]:
        """So many groups of the present step in the order of the stream, as verl's trainer reads them from the queue.

        verl has them in the order in which they were done, which puts the groups of short answers into a step's first
        updates, and differs from run to run. Raises NothingToLearn where there are too few, RunError where
        many groups fail, and Fault where an agent or vLLM has died.
        """
        while not self.pool.done(batch_size):
            self._ask_wanted()
            for group in self._finished():
                if group.error is not None:
                    print(f"dropped: sample {group.sample}: {group.error}", flush=True)
                del self.under_way[group.number]
                self.pool.add(group)
            self._refuse_failures()
        selection = self.pool.take(batch_size)
        self.selections.append(selection)
        if not selection.groups:
            raise NothingToLearn
        keys = [key for group in selection.groups for key in group.keys]
        tags = [dict(tag) for group in selection.groups for tag in group.tags]
        return KVBatchMeta(partition_id=partition_id, keys=keys, tags=tags), {}

    def _ask_wanted(self) -> None:
        if count := self.pool.wanted():
            self.pool.ask(count)
            asked = self.ask(count)
            self.under_way |= asked
            self.known = next(iter(asked.values()))

    def probe(self, step: int, *, copies: int) -> KVBatchMeta | None:
        """An answer of the present weights to a question that is known, in the queue so many times.

        None where no question is, or it has no answer. Raises Fault when the agent has died.
        """
        if self.known is None:
            return None
        agent = next(iter(self._reports.values()))
        tags: list[dict[str, Any]] = self._get(self._wait([agent.probe.remote(self.known, step, copies)]))
        return KVBatchMeta(partition_id=PARTITION, keys=list(probe_keys(len(tags))), tags=tags) if tags else None

    def _finished(self) -> list[Group]:
        """Waits for the next groups. Raises Fault when an agent has died."""
        report = self._wait(list(self._reports))
        agent = self._reports.pop(report)
        groups: list[Group] = self._get(report)
        self._reports[agent.finished.remote()] = agent
        return groups

    def _wait(self, reports: Sequence[ray.ObjectRef[Any]]) -> ray.ObjectRef[Any]:
        """Waits for the first of them."""
        ready: list[ray.ObjectRef[Any]] = []
        while not ready:
            self.look_up()
            ready, _ = ray.wait(list(reports), num_returns=1, timeout=LOOK_UP)
        return ready[0]

    @staticmethod
    def _get(report: ray.ObjectRef[Any]) -> Any:
        try:
            return ray.get(report)
        except ray.exceptions.RayActorError as error:
            raise Fault(f"an agent process has died: {' '.join(str(error).split())}") from error

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
        """Takes what the last part dropped out of verl's queue: when it is done, as an abandoned step is not."""
        keys = [key for each in self.selections[-1].dropped for key in each.group.keys]
        if keys:
            tq.kv_clear(keys=keys, partition_id=PARTITION)
