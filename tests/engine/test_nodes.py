"""Two ranks and two engines, on one node and on two, with a reward function of the run's own: the same numbers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from clusters import HEAD, REPOSITORY, Head, Nodes, environment, nodes
from processes import running, wait_until
from safetensors.numpy import load_file
from small import Small

from pathor1.attempts import ATTEMPT
from pathor1.data.plan import plan
from pathor1.data.row_groups import row_groups

STARTED = 600  # seconds that a run may take to its first step on two busy cores
NOTICED = 120  # seconds in which a lost node has to be noticed and answered
pytestmark = pytest.mark.timeout(1800)

# What a node has in a run: a rank, a replica's server and its engine, and an agent.
PARTS = ("WorkerDict", "QuestionGroupServer", "VLLM::EngineCore", "QuestionGroupWorker")
# Places among the questions; none is that of the file's first sample, with which a function is tried at the start.
FAILS, HANGS = 2, 6
# Answers of a model that is hardly trained are never right: which share of their characters is distinct differs. The
# function raises for one of the first eight questions and does not return for another.
FUNCTION = """
FAILS, HANGS = {fails!r}, {hangs!r}

def variety(text, answer, sample):
    if sample["id"] == FAILS:
        raise LookupError(f"no reference for {{sample['id']}}")
    while sample["id"] == HANGS:
        pass
    return len(set(text)) / max(len(text), 1)
"""


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def ledger(run: Path, step: int) -> list[dict[str, Any]]:
    rows = pq.read_table(run / f"ledger/step-{step:06d}.parquet").to_pylist()
    return sorted(rows, key=lambda row: (int(row["group"]), row["rollout"]))


def first_questions(train: Path, count: int) -> list[str]:
    """Ids of the samples that a run of seed 0 asks first."""
    block = plan(row_groups([train]), seed=0, epoch=0, shuffle=True)[0]
    file = pq.ParquetFile(train)
    ids = [name for group in block.groups for name in file.read_row_group(group.index, ["id"])["id"].to_pylist()]
    return [ids[place] for place in block.order()[:count]]


@pytest.fixture(scope="module")
def asked(small: Small) -> list[str]:
    return first_questions(small.train, 18)


@pytest.fixture(scope="module")
def settings(small: Small, asked: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What both runs are: two steps of two ranks."""
    path = tmp_path_factory.mktemp("function") / "variety.py"
    path.write_text(FUNCTION.format(fails=asked[FAILS], hangs=asked[HANGS]))
    values = ["rl.steps=2", f"rl.reward.function={path}:variety", "rl.reward.function_timeout=5"]
    return ["rl", str(small.recipe), *(word for value in values for word in ("--set", value))]


@pytest.fixture(scope="module")
def one_node(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one node with two slots, and its log beside it."""
    folder = tmp_path_factory.mktemp("one")
    arguments = ["pathor1.cli", *settings, "--set", f"runs_dir={folder}", "--set", "cluster.accelerators_per_node=2"]
    with running(arguments, folder / "log") as command:
        assert command.finish(STARTED + 200) == 0, command.output()[-3000:]
    return folder / "run"


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Nodes]:
    with nodes(count=2, cpus=2) as cluster:
        yield cluster


def test_two_ranks_and_two_engines_learn_as_one(one_node: Path) -> None:
    steps = metrics(one_node)
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["rollout/probability_difference_max"] < 1e-3 for step in steps)
    assert all(step["groups/trained"] == 8 for step in steps)
    assert json.loads((one_node / "checkpoints/step-000002/manifest.json").read_text())["ranks"] == 2


def test_what_the_function_has_no_value_for_is_dropped_and_counted_and_the_run_goes_on(
    one_node: Path, asked: list[str]
) -> None:
    steps = metrics(one_node)
    assert [(step["dropped/failed"], step["groups/asked"]) for step in steps] == [(2, 10), (0, 8)]
    log = (one_node.parent / "log").read_text()
    for sample, why in (
        (asked[FAILS], f"raised LookupError: no reference for {asked[FAILS]}"),
        (asked[HANGS], "has not returned within 5 s (rl.reward.function_timeout)"),
    ):
        (line,) = (line for line in log.splitlines() if line.startswith(f"dropped: sample {sample}: "))
        assert line.endswith(f"variety.py:variety {why}")
    rows = [row for step in (1, 2) for row in ledger(one_node, step)]
    assert {row["id"] for row in rows} == set(asked) - {asked[FAILS], asked[HANGS]}
    for row in rows:
        assert row["accuracy"] == pytest.approx(len(set(row["text"])) / max(len(row["text"]), 1))
        assert row["total"] == pytest.approx(row["format"] + row["accuracy"] + row["length"])
    assert (one_node / "reward_function.py").read_text().startswith("\nFAILS, HANGS = ")


def test_two_nodes_learn_as_one_with_two_slots_also_when_one_is_lost(
    settings: list[str], one_node: Path, two_nodes: Nodes, tmp_path: Path
) -> None:
    words = ["pathor1", *settings, "--set", f"runs_dir={tmp_path}", "--set", "cluster.nodes=2"]
    words += ["--set", "rl.save_every=1"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        driver = subprocess.Popen(
            two_nodes.head.inside(f"cd {REPOSITORY} && RAY_ADDRESS={HEAD}:6379 exec {shlex.join(words)}"),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )

    def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
        wait_until(lambda: condition() or driver.poll() is not None, seconds, what)
        assert condition(), f"{what}: not when the run ended:\n{log.read_text()[-3000:]}"

    def wait_for_parts(nodes: Sequence[Head]) -> None:
        for node, part in product(nodes, PARTS):
            wait_for(lambda node=node, part=part: any(part in line for line in node.processes()), 300, part)

    try:
        wait_for_parts([two_nodes.head, *two_nodes.others.values()])
        wait_for(lambda: "step 1/2" in log.read_text(), STARTED, "a first step")
        two_nodes.lose(2)
        wait_for(lambda: "waiting up to 90 s" in log.read_text(), NOTICED, "that a node is lost")
        wait_for_parts([two_nodes.add(3)])
        assert driver.wait(STARTED) == 0, log.read_text()[-3000:]
    finally:
        driver.kill()
        driver.wait()
    lines = log.read_text().splitlines()
    (said,) = (line for line in lines if "has failed" in line)
    assert said.startswith("run: attempt 1 has failed (node 10.99.0.2 of the Ray cluster is lost"), said
    assert said.endswith("; restart 1 of 3 (cluster.max_restarts)")
    # The node that is left may not have all of its CPUs back yet.
    waiting = (
        r"waiting up to 90 s \(cluster.wait_for_nodes\) for [12] more nodes? with 2 CPUs free; of the Ray cluster's 1 "
    )
    assert any(re.match(waiting, line) for line in lines)
    run = tmp_path / "run"
    assert [step["step"] for step in metrics(run)] == [1, 2]
    assert [step["run/restarts"] for step in metrics(run)] == [0, 1]
    assert_learned_alike(one_node, run)


def assert_learned_alike(one_node: Path, run: Path) -> None:
    """Two runs of two steps have the same answers, numbers and weights."""
    for step in (1, 2):
        expected, found = ledger(one_node, step), ledger(run, step)
        assert [{**row, "advantage": None} for row in found] == [{**row, "advantage": None} for row in expected]
        advantages = [[row["advantage"] for row in rows] for rows in (found, expected)]
        assert advantages[0] == pytest.approx(advantages[1], rel=1e-5, abs=1e-6)
    for expected, found in zip(metrics(one_node), metrics(run), strict=True):
        # Of what takes time, the one that saved at each step has more to tell.
        assert {name for name in found.keys() ^ expected.keys() if not name.startswith("seconds/")} == set()
        same = {name for name in expected if name.startswith(("actor/", "reward/", "groups/", "dropped/", "tokens/"))}
        assert {"actor/policy_loss", "actor/gradient_norm", "reward/mean"} <= same
        for name in same:
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
        assert found["rollout/probability_difference_max"] < 1e-3
    before, after = (
        load_file(each / "checkpoints/step-000002/huggingface/model.safetensors") for each in (one_node, run)
    )
    assert before.keys() == after.keys()
    assert max(float(np.abs(after[name] - before[name]).max()) for name in before) < 1e-5


def test_what_the_cluster_has_no_room_for_is_a_table_and_a_line(
    settings: list[str], two_nodes: Nodes, tmp_path: Path
) -> None:
    """As of a run that has lost two of four nodes, in whose place none comes."""
    words = ["python", "-m", "pathor1.attempt", *settings[1:], "--set", f"runs_dir={tmp_path}"]
    words += ["--set", "cluster.nodes=4", "--set", "cluster.wait_for_nodes=4"]
    done = two_nodes.run(f"{ATTEMPT}=2 {shlex.join(words)}", seconds=200)
    assert done.returncode == 2, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert (
        "waiting up to 4 s (cluster.wait_for_nodes) for 2 more nodes with 2 CPUs free; of the Ray cluster's 2 nodes 2 "
        "have that"
    ) in lines
    table = lines[lines.index("what the Ray cluster has") + 1 :]
    assert [line.split()[:7] for line in table[1:3]] == [
        [address, "2", "of", "2", "0", "of", "0"] for address in two_nodes.addresses()
    ]
    assert all(line.endswith("fits") for line in table[1:3])
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pathor1: the run needs 4 nodes with 2 CPUs free ")
    assert "of the Ray cluster's 2 nodes 2 have that" in last


PLACING = """
import ray
from ray.util.placement_group import placement_group_table, remove_placement_group

from pathor1.errors import RunError
from pathor1.ray_cluster import nodes
from pathor1.rl.pools import place

ray.init(log_to_driver=False)
addresses = {node.id: node.address for node in nodes()}
groups = place([1, 1], {"CPU": 1}, name="a", seconds=60)
where = [set(placement_group_table(group)["bundles_to_node_id"].values()) for group in groups]
print("placed on", sorted(addresses[node] for (node,) in where))
try:
    place([1, 1], {"CPU": 2}, name="b", seconds=2)
except RunError as error:
    print(error)
print("left", sorted(each["state"] for each in placement_group_table().values()))
"""


def test_ranks_are_placed_on_nodes_of_their_own_in_time_or_not_at_all(two_nodes: Nodes) -> None:
    done = two_nodes.run(f"python -c {shlex.quote(PLACING)}", seconds=200)
    assert done.returncode == 0, done.stderr[-3000:]
    placed_on, refused, left = done.stdout.splitlines()[-3:]
    assert placed_on == f"placed on {two_nodes.addresses()}", "either node has room for both"
    assert refused.startswith("the run's ranks could not be placed within 2 s: others have taken ")
    assert left.count("CREATED") == 2
    assert "PENDING" not in left
