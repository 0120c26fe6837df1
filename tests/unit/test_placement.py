"""What a run asks of a cluster's nodes, which of them it gets, and the table where it gets none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pathor1.attempts import ATTEMPT
from pathor1.errors import RunError
from pathor1.ray_cluster import Node
from pathor1.recipe import Recipe
from pathor1.rl.placement import asked, choose, has_room, require, table

GB = 1_000_000_000


def recipe(
    nodes: int = 2, accelerators: int = 8, tensor_parallel: int = 1, wait_for_nodes: float = 90, engines: int = 0
) -> Recipe:
    """engines: accelerators of vLLM alone."""
    tree: dict[str, Any] = {
        "name": "a",
        "model": {"path": "m"},
        "data": {"train": ["t"]},
        "rl": {"steps": 1, "group_size": 120},  # 32 x 120 answers an update divide by all of these ranks
        "cluster": {"nodes": nodes, "accelerators_per_node": accelerators, "wait_for_nodes": wait_for_nodes},
        "rollout": {"tensor_parallel": tensor_parallel},
    }
    if engines:
        tree["rl"]["mode"], tree["cluster"]["rollout_accelerators"] = "separate_async", engines
    return Recipe.model_validate(tree)


def node(address: str, cpus: tuple[float, float], gpus: tuple[float, float] = (0, 0)) -> Node:
    """CPUs and GPUs: how many are free, of how many."""
    return Node(
        id=f"id-{address}",
        address=address,
        free={"CPU": cpus[0], "GPU": gpus[0], "memory": 50 * GB},
        total={"CPU": cpus[1], "GPU": gpus[1], "memory": 64 * GB},
    )


class Cluster:
    """Nodes as Ray would tell of them at a time, on a clock that stands until somebody sleeps."""

    def __init__(self, look: Callable[[float], list[Node]]) -> None:
        self.now = 0.0
        self.at = look

    def require(self, asks: Recipe, accelerator: str = "gpu", *, shared: bool = True) -> None:
        require(
            asked(asks, accelerator),
            shared=shared,
            wait=asks.cluster.wait_for_nodes,
            look=self.look,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def look(self) -> list[Node]:
        return self.at(self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_rank_takes_a_gpu_and_what_verl_reserves_beside_it_or_a_cpu() -> None:
    gpu = asked(recipe(), "gpu")
    assert gpu.nodes == 2
    assert gpu.each() == {"CPU": 3 * 8 + 1, "GPU": 8}
    assert asked(recipe(accelerators=2), "cpu").each() == {"CPU": 2 + 1, "GPU": 0}


def test_nodes_are_taken_by_what_is_free_in_the_order_of_their_addresses() -> None:
    found = [
        node("10.0.0.3", (32, 32), (8, 8)),
        node("10.0.0.4", (32, 32), (7, 8)),  # another job has a GPU of it
        node("10.0.0.1", (32, 32), (8, 8)),
        node("10.0.0.2", (24, 96), (8, 8)),
    ]
    each = asked(recipe(), "gpu").each()
    assert [one.address for one in choose(found, 2, each) or ()] == ["10.0.0.1", "10.0.0.3"]
    assert [one.address for one in choose(found, 1, each) or ()] == ["10.0.0.1"]
    assert choose(found, 3, each) is None, "sixteen GPUs more on two nodes are no third node"


def test_what_cannot_ever_fit_ends_at_once_with_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(lambda _: [node("10.0.0.2", (96, 96), (4, 4)), node("10.0.0.1", (96, 96), (8, 8))])
    with pytest.raises(RunError) as caught:
        cluster.require(recipe(tensor_parallel=4), shared=False)
    assert cluster.now == 0
    assert str(caught.value) == (
        "the run needs 2 nodes with 8 GPUs and 25 CPUs free (cluster.nodes, cluster.accelerators_per_node), and of the "
        "Ray cluster's 2 nodes 1 has that: see the table above; ask for fewer, add nodes, or wait for what other jobs "
        "have taken"
    )
    assert capsys.readouterr().out.splitlines() == [
        "what the run takes",
        "  of each node    CPU  GPU",
        "  ranks           24   8    8 that train (cluster.accelerators_per_node)",
        "  vLLM's engines  0    0    where the ranks are: 2 of 4 (rollout.tensor_parallel)",
        "  the rest        1    0    the stream; agents, engines and queue start with it",
        "  together        25   8    on 2 nodes (cluster.nodes)",
        "what the Ray cluster has",
        "  free on   CPU       GPU     memory",
        "  10.0.0.1  96 of 96  8 of 8  50.0 of 64.0 GB  fits",
        "  10.0.0.2  96 of 96  4 of 4  50.0 of 64.0 GB  lacks 4 GPUs",
    ]


def test_what_another_job_has_taken_is_waited_for_shortly(capsys: pytest.CaptureFixture[str]) -> None:
    def given_back(after: float) -> Cluster:
        return Cluster(lambda now: [node("10.0.0.1", (4 if now >= after else 2.75, 4))])

    cluster = given_back(after=5)
    cluster.require(recipe(nodes=1, accelerators=2), "cpu")
    assert cluster.now == 5
    assert capsys.readouterr().out.splitlines() == [
        "waiting up to 15 s for 1 more node with 3 CPUs free; of the Ray cluster's 1 node 0 have that"
    ]
    cluster = given_back(after=60)
    with pytest.raises(RunError, match="^the run needs 1 node with 3 CPUs free .* 1 node 0 have that"):
        cluster.require(recipe(nodes=1, accelerators=2), "cpu")
    assert cluster.now == 15
    assert "  10.0.0.1  2.75 of 4  0 of 0  50.0 of 64.0 GB  lacks 0.25 CPUs" in capsys.readouterr().out


def test_a_run_that_is_started_again_waits_for_its_nodes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = node("10.0.0.1", (4, 4)), node("10.0.0.2", (4, 4))
    asks = recipe(accelerators=2)
    cluster = Cluster(lambda now: [first, second] if now >= 10 else [first])
    cluster.require(asks, "cpu")
    assert cluster.now == 10, "a node that was joining"
    cluster = Cluster(lambda now: [first, second] if now >= 70 else [first])
    with pytest.raises(RunError):
        cluster.require(asks, "cpu")
    assert cluster.now == 15
    capsys.readouterr()
    monkeypatch.setenv(ATTEMPT, "2")
    cluster = Cluster(lambda now: [first, second] if now >= 70 else [first])
    cluster.require(asks, "cpu")
    assert cluster.now == 70
    assert capsys.readouterr().out == (
        "waiting up to 90 s (cluster.wait_for_nodes) for 1 more node with 3 CPUs free; of the Ray cluster's 1 node 1 "
        "has that\n"
    )
    cluster = Cluster(lambda _: [first])
    with pytest.raises(RunError, match="the Ray cluster's 1 node 1 has that"):
        cluster.require(asks, "cpu")
    assert cluster.now == 90
    cluster = Cluster(lambda now: [first, second] if now >= 400 else [first])
    cluster.require(recipe(accelerators=2, wait_for_nodes=600), "cpu")
    assert cluster.now == 400


def test_a_cluster_without_nodes_has_a_table_too() -> None:
    assert table(asked(recipe(), "gpu"), []).splitlines()[-1] == "  free on  CPU  GPU  memory"


@pytest.mark.parametrize(
    ("accelerators", "tensor_parallel", "fits"),
    [(8, 8, True), (8, 2, True), (4, 8, True), (3, 2, False), (6, 4, False)],
)
def test_an_engine_has_a_node_or_whole_nodes(accelerators: int, tensor_parallel: int, fits: bool) -> None:
    tree = {"nodes": 2, "accelerators": accelerators, "tensor_parallel": tensor_parallel}
    if fits:
        recipe(**tree)
    else:
        with pytest.raises(ValueError, match="one engine would lie on parts of two nodes"):
            recipe(**tree)


def test_engines_of_their_own_are_each_on_one_node_that_has_room_beside_the_ranks() -> None:
    two = [node("10.0.0.1", (32, 32), (8, 8)), node("10.0.0.2", (32, 32), (4, 8))]
    for accelerators, engines, parallel, fits in (
        (8, 4, 1, True),
        (8, 5, 1, False),
        (6, 6, 1, True),  # two beside the ranks
        (6, 6, 2, True),
        (5, 6, 2, True),  # one on the first node, two on the second
        (5, 8, 2, False),  # three and four GPUs are free
        (5, 4, 4, True),
        (5, 8, 4, False),
    ):
        asks = asked(recipe(nodes=1, accelerators=accelerators, engines=engines, tensor_parallel=parallel), "gpu")
        assert has_room(two, asks) == fits, (accelerators, engines, parallel)
    cpus = [node("10.0.0.1", (4, 4))]
    assert has_room(cpus, asked(recipe(nodes=1, accelerators=2, engines=1), "cpu"))
    assert not has_room(cpus, asked(recipe(nodes=1, accelerators=2, engines=2), "cpu"))


def test_one_accelerator_is_too_few_for_training_and_generating_apart(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(lambda _: [node("10.0.0.1", (32, 32), (1, 1))])
    with pytest.raises(RunError) as caught:
        cluster.require(recipe(nodes=1, accelerators=1, engines=1), shared=False)
    assert str(caught.value).startswith(
        "the run needs 1 node with 1 GPU and 4 CPUs free (cluster.nodes, cluster.accelerators_per_node) and beside "
        "that 1 engine with 1 GPU and 2 CPUs each (cluster.rollout_accelerators), and of the Ray cluster's 1 node 1 "
        "has that: see the table above"
    )
    told = capsys.readouterr().out
    assert "vLLM's engines  0    0    on accelerators of their own: 1 of 1 (cluster.rollout_accelerators)" in told
    assert "an engine       2    1    1 of them, each on one node (cluster.rollout_accelerators)" in told
