"""Where a run goes: what it takes of each node, what the nodes have free, and which of them it gets.

    asked (recipe) + nodes (Ray) -> choose, has_room -> the nodes, or a table of what is asked and what is there

It is looked at before anything starts: Ray itself would wait for nodes without end and without a word. What other jobs
have taken counts as not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pathor1 import attempts
from pathor1.errors import RunError
from pathor1.ray_cluster import Node, nodes
from pathor1.recipe import Recipe

# What verl reserves beside a GPU, for the processes that share it: where ranks are, and where vLLM alone is.
CPUS_PER_RANK, CPUS_PER_ENGINE = 3, 2
# Seconds that a run waits for nodes that are just joining, and for what a job that has just ended gives back.
GIVEN_BACK = 15.0
KINDS = ("CPU", "GPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one part of a run takes of each node, resource -> amount, and why."""

    name: str
    takes: Mapping[str, int]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a run takes: so many nodes, and of each of them these parts; and engines that are elsewhere.

    engines: how many; engine: what each takes of one node, of those nodes or of another.
    """

    nodes: int
    parts: tuple[Part, ...]
    engines: int = 0
    engine: Mapping[str, int] = field(default_factory=dict[str, int])

    def each(self) -> dict[str, int]:
        """The parts together, resource -> amount."""
        return {kind: sum(part.takes.get(kind, 0) for part in self.parts) for kind in KINDS}


def asked(recipe: Recipe, accelerator: str) -> Ask:
    """What a recipe takes of a cluster. accelerator: "cpu" or "gpu"."""
    ranks, spread = recipe.cluster.accelerators_per_node, recipe.rollout.tensor_parallel
    takes = {"CPU": ranks} if accelerator == "cpu" else {"GPU": ranks, "CPU": CPUS_PER_RANK * ranks}
    own = recipe.cluster.rollout_accelerators
    engines = f"where the ranks are: {ranks // spread or 1} of {spread} (rollout.tensor_parallel)"
    if own:
        engines = f"on accelerators of their own: {own // spread} of {spread} (cluster.rollout_accelerators)"
    return Ask(
        nodes=recipe.cluster.nodes,
        engines=own // spread,
        engine={"CPU": spread} if accelerator == "cpu" else {"GPU": spread, "CPU": CPUS_PER_ENGINE * spread},
        parts=(
            Part(name="ranks", takes=takes, why=f"{ranks} that train (cluster.accelerators_per_node)"),
            Part(name="vLLM's engines", takes={}, why=engines),
            Part(name="the rest", takes={"CPU": 1}, why="the stream; agents, engines and queue start with it"),
        ),
    )


def lacks(node: Node, each: Mapping[str, int]) -> dict[str, float]:
    """What a node has too little of, resource -> how much."""
    return {kind: count - node.free.get(kind, 0) for kind, count in each.items() if node.free.get(kind, 0) < count}


def choose(found: Sequence[Node], count: int, each: Mapping[str, int]) -> list[Node] | None:
    """So many nodes that have free what is asked of each, in the order of their addresses; None = there are fewer."""
    fitting = sorted((node for node in found if not lacks(node, each)), key=lambda node: (node.address, node.id))
    return fitting[:count] if len(fitting) >= count else None


def has_room(found: Sequence[Node], ask: Ask) -> bool:
    """Whether the nodes have free what a run takes, where everything goes to the first node that has room for it."""
    each = ask.each()
    chosen = choose(found, ask.nodes, each)
    if chosen is None:
        return False
    taken = {node.id for node in chosen}
    left = [_without(node, each) if node.id in taken else node for node in found]
    for _ in range(ask.engines):
        one = choose(left, 1, ask.engine)
        if one is None:
            return False
        left = [_without(node, ask.engine) if node.id == one[0].id else node for node in left]
    return True


def _without(node: Node, taken: Mapping[str, int]) -> Node:
    """The node with what is left when so much is taken."""
    return replace(node, free={kind: count - taken.get(kind, 0) for kind, count in node.free.items()})


def require(
    ask: Ask,
    *,
    shared: bool,
    wait: float,
    look: Callable[[], list[Node]] = nodes,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Raises RunError, behind a table of what is asked and what is there, where the cluster has no room for a run.

    Waits for a short while where others have taken the room, or, with `shared`, where nodes may be about to join; when
    the run is started again, `wait` seconds (the recipe's cluster.wait_for_nodes) for what is to come in the place of a
    node that it has lost.
    """
    again = attempts.number() > 1
    patience, since = wait if again else GIVEN_BACK, clock()
    told = False
    while not has_room(found := look(), ask):
        ever = has_room([replace(node, free=node.total) for node in found], ask)
        if clock() - since >= patience or not (ever or shared):
            print(table(ask, found), flush=True)
            raise RunError(problem(ask, found))
        if not told:
            limit = f"{patience:.0f} s{' (cluster.wait_for_nodes)' if again else ''}"
            print(f"waiting up to {limit} for {lacking(ask, found)}", flush=True)
            told = True
        sleep(1.0)


def lacking(ask: Ask, found: Sequence[Node]) -> str:
    """What is waited for: "1 more node with 8 GPUs and 25 CPUs free; of the Ray cluster's 1 node 1 has that"."""
    each = ask.each()
    more = ask.nodes - sum(not lacks(node, each) for node in found)
    if more <= 0:
        return f"room for {_elsewhere(ask)}"
    return f"{more} more node{'s' if more > 1 else ''} with {_amounts(each)} free; {_have(each, found)}"


def problem(ask: Ask, found: Sequence[Node]) -> str:
    """The line below the table."""
    each = ask.each()
    beside = f" and beside that {_elsewhere(ask)}" if ask.engines else ""
    return (
        f"the run needs {_count(ask.nodes, 'node')} with {_amounts(each)} free (cluster.nodes, "
        f"cluster.accelerators_per_node){beside}, and {_have(each, found)}: see the table above; ask for fewer, "
        "add nodes, or wait for what other jobs have taken"
    )


def _elsewhere(ask: Ask) -> str:
    """ "2 engines with 1 GPU and 2 CPUs each (cluster.rollout_accelerators)" """
    return f"{_count(ask.engines, 'engine')} with {_amounts(ask.engine)} each (cluster.rollout_accelerators)"


def _have(each: Mapping[str, int], found: Sequence[Node]) -> str:
    fitting = sum(not lacks(node, each) for node in found)
    return f"of the Ray cluster's {_count(len(found), 'node')} {fitting} {'has' if fitting == 1 else 'have'} that"


def table(ask: Ask, found: Sequence[Node]) -> str:
    """What is asked of each node, part by part, and what each node of the cluster has."""
    each = ask.each()
    asks = [["of each node", *KINDS, ""]]
    asks += [[part.name, *(str(part.takes.get(kind, 0)) for kind in KINDS), part.why] for part in ask.parts]
    asks += [["together", *(str(each[kind]) for kind in KINDS), f"on {_count(ask.nodes, 'node')} (cluster.nodes)"]]
    if ask.engines:
        amounts = (str(ask.engine.get(kind, 0)) for kind in KINDS)
        asks += [["an engine", *amounts, f"{ask.engines} of them, each on one node (cluster.rollout_accelerators)"]]
    there = [["free on", *KINDS, "memory", ""]]
    for node in sorted(found, key=lambda node: (node.address, node.id)):
        counts = [f"{node.free.get(kind, 0):g} of {node.total.get(kind, 0):g}" for kind in KINDS]
        memory = f"{node.free.get('memory', 0) / 1e9:.1f} of {node.total.get('memory', 0) / 1e9:.1f} GB"
        missing = lacks(node, each)
        there.append([node.address, *counts, memory, f"lacks {_amounts(missing)}" if missing else "fits"])
    return "\n".join(["what the run takes", *_columns(asks), "what the Ray cluster has", *_columns(there)])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line.rstrip()}" for line in lines]


def _amounts(amounts: Mapping[str, float]) -> str:
    """ "8 GPUs and 25 CPUs" """
    named = [_count(amounts[kind], kind) for kind in reversed(KINDS) if amounts.get(kind)]
    return " and ".join(named)


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}" if number == 1 else f"{number:g} {what}s"
