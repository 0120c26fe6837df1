"""Held-out questions, answered greedily by the run's own vLLM with the weights of the moment.

They are asked beside everything that training goes by: they come from `data.test` and not from the stream, and go
straight to the agents and back, past the queue and the sampler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeAlias

import ray

from pathor1.checkpoints import Evaluated
from pathor1.errors import Fault
from pathor1.evaluation.questions import Listing, read_unit
from pathor1.recipe import Recipe
from pathor1.rl import faults, held_out
from pathor1.rl.ledger import LedgerRow, remove_after, write
from pathor1.rl.sampler import LOOK_UP
from pathor1.samples import Sample

# Questions that an agent is handed at a time.
PART = 16

Part = list[tuple[int, Sample]]
Answers: TypeAlias = "ray.ObjectRef[list[LedgerRow]]"


class Evaluations:
    """Those of one run: what has been asked, `done`, what is owed, and the record of all answers in `records`."""

    def __init__(self, recipe: Recipe, records: Path) -> None:
        self.recipe = recipe
        self.records = records
        self.done: list[Evaluated] = []

    def go_on(self, step: int, done: Sequence[Evaluated]) -> None:
        """The run goes on behind a step. Raises DataError where the questions are others than those of `done`."""
        self.done = list(done)
        remove_after(self.records, step)
        if self.recipe.rl.evaluate_every:
            self.questions = held_out.questions(self.recipe, done)

    def is_owed(self, step: int) -> bool:
        """Whether the weights behind a step are to be evaluated and have not been."""
        return held_out.is_owed(step, self.recipe, self.done)

    def end_early(self) -> bool:
        """Whether the patience of the run is at its end."""
        return held_out.ends_early(self.done, self.recipe.rl.early_stop_patience)

    def evaluate(
        self, step: int, agents: Sequence[Any], *, servers: int, look_up: Callable[[], None]
    ) -> dict[str, float]:
        """Asks all questions of the present weights, those of `step`, tells of it, and returns the step's numbers.

        agents: Ray actors with a method `answer`. servers: engines, which decides how many questions are under way.
        look_up: called now and then; what it raises ends the evaluation, as if it had not begun. Raises Fault where an
        agent or vLLM has died.
        """
        started = time.monotonic()
        at_once = self.recipe.rollout.max_sequences * servers
        rows = ask(self.questions, agents, step, at_once=at_once, look_up=look_up)
        write(self.records, step, rows)
        print(held_out.told(rows, step), flush=True)
        values = held_out.metrics(rows)
        self.done.append(Evaluated(step=step, accuracy=values["evaluation/accuracy"], questions=self.questions.digest))
        values["evaluation/since_best"] = float(held_out.since_best(self.done))
        return values | {"seconds/evaluation": time.monotonic() - started}


def ask(
    found: Listing, agents: Sequence[Any], step: int, *, at_once: int, look_up: Callable[[], None]
) -> list[LedgerRow]:
    """One answer to each question, in order; those that failed have their reason.

    agents: Ray actors with a method `answer`, which get parts in turn. at_once: no more questions than this, and those
    of a part, are under way and have their pictures in memory. look_up: called now and then; what it raises ends the
    evaluation, and takes back what is under way. Raises Fault where an agent or vLLM has died.
    """
    waiting: list[Answers] = []
    rows: list[LedgerRow] = []
    try:
        for part, agent in zip(parts(found), cycle(agents), strict=False):
            waiting.append(agent.answer.remote(part, step))
            while len(waiting) * PART >= at_once:
                rows += _next(waiting, look_up)
        while waiting:
            rows += _next(waiting, look_up)
    finally:
        for answers in waiting:
            ray.cancel(answers)
    return sorted(rows, key=lambda row: int(row.group))


def parts(found: Listing) -> Iterator[Part]:
    """The questions with their numbers and pictures, `PART` at a time."""
    samples = (sample for unit in found.units for window in read_unit(unit) for sample in window)
    numbered = enumerate(samples)
    while part := list(islice(numbered, PART)):
        yield part


def _next(waiting: list[Answers], look_up: Callable[[], None]) -> list[LedgerRow]:
    """Waits for a part that is answered, and takes it out of `waiting`."""
    while True:
        look_up()
        ready, _ = ray.wait(waiting, num_returns=1, timeout=LOOK_UP)
        if ready:
            break
    try:
        rows: list[LedgerRow] = ray.get(ready[0])
    except ray.exceptions.RayActorError as error:
        raise Fault(f"an agent process has died: {' '.join(str(error).split())}") from error
    waiting.remove(ready[0])
    for row in rows:
        if row.dropped and (why := faults.outside_in(row.reason)):
            raise Fault(why)
    return rows
