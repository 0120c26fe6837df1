"""Dynamic sampling (DAPO, section 3.2): which question groups are learned from, and why the others are not.

Pure: a `Pool` is told of groups as they finish and says how many more to ask for; who asks, and waits, is
`pathor1.rl.sampler`. A group that is not learned from has one of `REASONS`, and each reason is a metric.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Reason = Literal[
    "all_correct",  # no difference to learn from
    "all_wrong",
    "outside_band",  # the share of right answers is outside rl.keep_pass_rate
    "failed",  # it could not be generated in time, or has no reward
    "stale",  # it waited for longer than rl.max_carry_steps
    "budget",  # no room for it, or too few others for an update, and nothing may wait
]
REASONS: tuple[Reason, ...] = get_args(Reason)
# Accuracies that differ by no more are the same.
SAME = 1e-6
# A step in which so many groups fail, as a share of its batch, ends the run: it is not the question's fault.
MOST_FAILED = 0.25
# How many groups the estimate of a step's informative share is worth at its beginning, as a share of the batch.
PRIOR = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A question group as it finished. Its rollouts lie in the queue.

    number: the question's place in the run; step: when it was asked; keys and tags: of its rollouts in the queue;
    rows: what the ledger keeps of each; error: why there are none.
    """

    number: int
    sample: str
    step: int
    accuracies: Sequence[float]
    keys: Sequence[str] = ()
    tags: Sequence[Mapping[str, Any]] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    error: str | None = None

    @property
    def pass_rate(self) -> float:
        """Mean accuracy of the rollouts, 0 to 1."""
        return sum(self.accuracies) / len(self.accuracies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the recipe says. batch: groups a step; budget: groups that a step may ask for; band: of the pass rate.

    `dynamic` False: every group is learned from, and only failed ones are asked for again. ahead: groups that are asked
    for before the step that is to learn from them, in a run of so many `steps`; 0 = a step asks for its own, and waits
    for all of them.
    """

    batch: int
    dynamic: bool
    budget: int
    min_groups: int
    max_carry_steps: int
    band: tuple[float, float] = (0.0, 1.0)
    ahead: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A group that is not learned from."""

    group: Group
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A step's outcome: the groups to learn from, none where the update is skipped, and those that are dropped.

    Where a step learns in parts, that of one of them.
    """

    groups: tuple[Group, ...]
    dropped: tuple[Dropped, ...]
    asked: int  # groups that were asked for in this step
    carried: tuple[Group, ...]  # that wait for the next step


def joined(parts: Sequence[Selection]) -> Selection:
    """The parts of a step as one."""
    return Selection(
        groups=tuple(group for part in parts for group in part.groups),
        dropped=tuple(each for part in parts for each in part.dropped),
        asked=parts[-1].asked,
        carried=parts[-1].carried,
    )


def verdict(group: Group, rules: Rules) -> Reason | None:
    """Why a finished group is not learned from, None = it is. The raw accuracy counts, never the shaped reward:
    answers that are all wrong and of different lengths have nothing to teach."""
    if group.error is not None:
        return "failed"
    if not rules.dynamic:
        return None
    if max(group.accuracies) - min(group.accuracies) <= SAME:
        return "all_correct" if group.pass_rate > 0.5 else "all_wrong"
    if not rules.band[0] <= group.pass_rate <= rules.band[1]:
        return "outside_band"
    return None


@dataclass(slots=True)
class Pool:
    """The groups of a step, what waits from earlier ones, and what later ones will find.

    begin -> (wanted -> ask; add)... until done -> take, once or, where a step learns in parts, for each part
    """

    rules: Rules
    waiting: list[Group] = field(default_factory=list[Group])  # informative, not yet learned from
    share: float = 1.0  # of the groups that are asked for, how many are expected to be informative
    step: int = 0
    left: int = 0  # groups that the step is still to learn from
    asked: int = 0
    before: int = 0  # groups that were asked for before the run's first step, which tells of them
    asked_in: Counter[int] = field(default_factory=Counter[int])  # of the groups under way: how many in which step
    finished: int = 0
    informative: int = 0
    dropped: list[Dropped] = field(default_factory=list[Dropped])
    failures: list[Group] = field(default_factory=list[Group])  # of this step

    @property
    def under_way(self) -> int:
        """Groups that have been asked for and have not finished."""
        return self.asked_in.total()

    def begin(self, step: int) -> None:
        """A new step: what has waited too long is dropped."""
        self.before = self.asked if self.step == step else 0
        self.step, self.left = step, self.rules.batch
        self.asked = self.finished = self.informative = 0
        self.failures = []
        self.dropped = [Dropped(group=group, reason="stale") for group in self.waiting if self._is_stale(group)]
        self.waiting = [group for group in self.waiting if not self._is_stale(group)]

    def begin_ahead(self, step: int) -> None:
        """Before a run's first step, `step`: what is wanted now is for those behind it."""
        self.begin(step)
        self.left = 0

    def wanted(self) -> int:
        """How many more groups to ask for now, so that as many as are missing can be expected to be informative.

        Never so many that more than a batch could be left over, and never more than the budget.
        """
        missing = self.left + self._ahead() - len(self.waiting)
        share = self._expected_share()
        more = math.ceil((missing - self.under_way * share) / share - 1e-9)
        room = self._most() - len(self.waiting) - self.under_way
        return max(0, min(more, room, self.rules.budget - self.asked)) if missing > 0 else 0

    def ask(self, count: int) -> None:
        """So many groups have been asked for."""
        self.asked += count
        self.asked_in[self.step] += count

    def add(self, group: Group) -> None:
        """A group has finished."""
        self.asked_in[group.step] -= 1
        self.finished += 1
        reason = verdict(group, self.rules)
        if reason is None:
            self.informative += 1
            self.waiting.append(group)
        else:
            self.dropped.append(Dropped(group=group, reason=reason))
        if reason == "failed":
            self.failures.append(group)

    def done(self, count: int) -> bool:
        """Whether `count` groups need not be waited for any longer.

        Where nothing is asked ahead: nothing is under way any more and nothing more is to be asked for. Else as soon as
        they are there, unless others that are still under way would then be too old for the step that learns from them.
        """
        if self.wanted():
            return False
        if self.under_way == 0:
            return True
        return self.rules.ahead > 0 and len(self.waiting) >= count and self._others_in_time(count)

    def take(self, count: int) -> Selection:
        """The groups to learn from, the oldest first; the others wait, or are dropped where nothing may wait."""
        self.share = self._expected_share()
        ordered = self._oldest_first()
        chosen, rest = ordered[:count], ordered[count:]
        if len(chosen) < min(self.rules.min_groups, count):
            chosen, rest = [], ordered
        if self.rules.max_carry_steps == 0:
            self.dropped += [Dropped(group=group, reason="budget") for group in rest]
            rest = []
        self.waiting, self.left = rest, self.left - count
        dropped, self.dropped = tuple(self.dropped), []
        return Selection(
            groups=tuple(chosen), dropped=dropped, asked=self.before + self.asked, carried=tuple(self.waiting)
        )

    def _oldest_first(self) -> list[Group]:
        return sorted(self.waiting, key=lambda group: group.number)

    def _ahead(self) -> int:
        """Groups that are asked for ahead now: nobody would learn from what is asked beyond the last step's."""
        return min(self.rules.ahead, (self.rules.steps - self.step) * self.rules.batch) if self.rules.ahead else 0

    def _most(self) -> int:
        """The most groups that may be there, waiting or under way: ahead, no more than can be learned from in time."""
        most = 2 * self.rules.batch + self.rules.ahead
        return min(most, self.left + self.rules.max_carry_steps * self.rules.batch) if self.rules.ahead else most

    def _others_in_time(self, count: int) -> bool:
        """Whether, behind the `count` oldest that are there, a batch a step is enough for all others in their time."""
        others = self.asked_in + Counter(group.step for group in self._oldest_first()[count:])
        for steps in range(self.rules.max_carry_steps + 1):
            last = self.step + steps - self.rules.max_carry_steps  # what was asked until then is due by then
            due = sum(groups for step, groups in others.items() if step <= last)
            if due > self.left - count + steps * self.rules.batch:
                return False
        return True

    def _is_stale(self, group: Group) -> bool:
        return self.step - group.step > self.rules.max_carry_steps

    def _expected_share(self) -> float:
        """What was seen in earlier steps, outweighed by what is seen in this one; at least one in the budget.

        Without dynamic sampling all: one that fails is asked for again, and says nothing of the others.
        """
        if not self.rules.dynamic:
            return 1.0
        prior = PRIOR * self.rules.batch
        share = (prior * self.share + self.informative) / (prior + self.finished)
        return max(share, self.rules.batch / self.rules.budget)
