"""What a rollout costs beside the engines, as a step grows: stream, agent, scoring, sampler, batching, record.

    .venv/bin/python benchmarks/growth.py --rollouts 64 512 4096 32768 --nodes 1 4 16 --out growth.json

pathor1's trainer, agents, queue and record run as they are, on a Ray of their own. In the place of vLLM stands a client
that gives each answer after `--answer` seconds, however many are asked for at once; in the place of the actor stands
one that says that its log-probabilities are vLLM's and learns nothing. All of a step's questions are asked at once, in
groups of 8 answers of 9 to 16 tokens, no two of which are as long. Behind the sizes come, with 2,048 rollouts,
`--nodes`: so many Ray nodes share this machine, with an agent and a storage unit on each. What grows then is the number
of processes that are spoken to, not what there is to compute with; each takes a gigabyte of memory.

With `--corrected` rollouts are weighed by how much likelier the actor finds them than vLLM did, as those of DAPO and of
the asynchronous modes are: the log-probabilities of all tokens then go through the trainer, which they do not else.

ms        Milliseconds of a step for each of its rollouts, less the time of an answer: the median of the steps but the
          first, with the least and the most. Of 64 rollouts there are 32 steps, the first quarter of which does not
          count: processes are still at work on their start.
CPU ms    Of the run's own processes, for each rollout, over the same steps; `Ray`: of its daemons, a set on each node.
ask       Of it until the last question is with an agent, in ms for each rollout; `sample`: until the last group has
          come; `batch`: log-probabilities and advantages; `record`: metrics, ledger, and what is cleared.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

GROUP, TOKENS = 8, 16
ON_NODES = 2048  # rollouts
# What the command of a process of Ray's own holds, that it has whatever runs on it.
DAEMONS = (b"/ray/", b"--webui=", b"ray::IDLE", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
RECIPE = """
name = "run"
runs_dir = "FOLDER/runs"

[model]
path = "FOLDER/model"
dtype = "float32"
gradient_checkpointing = false

[data]
train = ["FOLDER/train.parquet"]
system_prompt = "none"
max_prompt_tokens = 128
min_pixels = 3136
max_pixels = 3136
workers = 1

[rl]
algorithm = "grpo"
steps = 4
prompts_per_step = 8
group_size = 8
prompts_per_update = 8
max_response_tokens = 16
kl_coefficient = 0.0
save_every = 100000

[rl.reward]
overlong_cache_tokens = 4

[rollout]
enforce_eager = true

[cluster]
accelerators_per_node = 1
"""
CORRECTED = """
[verl]
algorithm.rollout_correction.rollout_is = "token"
"""


class ConstantEngine:
    """Stands where verl's client of vLLM does: every answer takes as long, and of a group each has another length.

    share: answers that an agent is asked for in a step, all of which the weights of the step before have said.
    """

    def __init__(self, seconds: float, share: int) -> None:
        self.seconds = seconds
        self.share = share
        self.given = 0

    @asynccontextmanager
    async def ask(self, request_id: str, *, samplings: Sequence[Any], **_: Any) -> AsyncIterator[Sequence[Any]]:
        """The answers to a question."""
        yield [self._answer() for _ in samplings]

    async def _answer(self) -> Any:
        """One, of which every other is right in no way and all have the same log-probabilities."""
        from verl.workers.rollout.replica import TokenOutput

        tokens, version = TOKENS - self.given % GROUP, self.given // self.share
        self.given += 1
        await asyncio.sleep(self.seconds)
        return TokenOutput(
            token_ids=[20 + place for place in range(tokens)],
            log_probs=[-1.0] * tokens,
            stop_reason="completed",
            extra_fields={"parts": [(version, tokens)]},
        )


def without_engines() -> Any:
    """pathor1's trainer without vLLM and without an actor (a class, made when verl is imported)."""
    import torch
    import transfer_queue as tq
    from verl.utils.debug import marked_timer

    from pathor1.rl import modes, trainer

    class Trainer(modes.Sync):
        def init(self) -> None:
            self._init_tokenizer()
            self._init_dataloader()
            self._init_dump_executor()
            self._init_resource_pool_mgr()
            self.actor_rollout_wg = SimpleNamespace(_dispatch_info={"actor": [0]}, world_size=1)
            self.checkpoint_manager = SimpleNamespace(
                sleep_replicas=lambda: None, update_weights=lambda _: None, abort_replicas=lambda **_: None
            )
            self.llm_server_manager = SimpleNamespace(server_handles=[])
            self.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
            self._load_checkpoint()

        def _save_checkpoint(self, stream: Any = None, unanswered: Any = None) -> None:
            """There is no model to save."""

        def _ask(self, count: int) -> dict[int, Any]:
            with marked_timer("ask", self.timing_raw):
                return super()._ask(count)

        def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
            """The actor's part is left out; what the trainer does with its result is not."""
            if self.takes_one_pass:
                return batch
            names = ["rollout_log_probs", "response_mask"]
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
            data["old_log_probs"] = data["rollout_log_probs"]
            data["entropy"] = torch.zeros_like(data["rollout_log_probs"])
            batch = tq.kv_batch_put(
                keys=batch.keys, partition_id=batch.partition_id, fields=data.select("old_log_probs", "entropy")
            )
            differences = trainer.probability_differences(batch, version=self.global_steps - 1)
            metrics["rollout/probability_difference_max"] = float(differences.max())
            return batch

        def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
            metrics["rollout/probability_difference_mean"] = metrics["actor/entropy"] = 0.0
            metrics.setdefault("rollout/probability_difference_max", 0.0)
            return batch

    return Trainer


def steps_of(rollouts: int) -> int:
    """How many steps are made, of which the first quarter does not count: small ones are over before all is at rest."""
    return max(4, 2048 // rollouts)


def measure(folder: Path, rollouts: int, nodes: int, answer: float) -> dict[str, Any]:
    """The steps of one size, in this process."""
    import transfer_queue as tq
    from omegaconf import OmegaConf

    from pathor1.data.sources import sources
    from pathor1.data.stream import Reading, SampleStream
    from pathor1.fork_server import own_launcher
    from pathor1.ray_cluster import forked_by, ray_cluster
    from pathor1.recipe import load
    from pathor1.rl import run
    from pathor1.rl.agent import QuestionGroupManager
    from pathor1.rl.health import Health
    from pathor1.rl.verl_config import build
    from pathor1.runs import RunFolder

    prompts, count = rollouts // GROUP, steps_of(rollouts)
    recipe = load(
        folder / "recipe.toml",
        [f"rl.steps={count}", f"rl.prompts_per_step={prompts}", f"rl.prompts_per_update={prompts}"],
    )
    ends: list[tuple[float, float, float]] = []
    phases: list[dict[str, float]] = []
    environment, python = run._environment(recipe, "cpu"), forked_by(own_launcher())
    with ray_cluster(environment, log_to_driver=False, python=python):
        config = build(recipe, accelerator="cpu")
        config.actor_rollout_ref.rollout.agent.num_workers = nodes
        config.transfer_queue.backend.SimpleStorage.num_data_storage_units = nodes
        OmegaConf.resolve(config)
        run._start_queue(config)
        made = RunFolder.create(recipe.runs_dir, f"{rollouts}-{nodes}")
        made.recipe.write_text("", encoding="utf-8")
        found = sources(recipe.data)

        def note(step: int, values: dict[str, float]) -> None:
            ends.append((time.monotonic(), *_cpu()))
            phases.append(dict(trainer.timing_raw))

        trainer = without_engines()(
            config,
            recipe=recipe,
            folder=made,
            make_stream=lambda start: SampleStream(
                found,
                seed=0,
                reading=Reading.of(recipe.data, rows_ahead=run.STEPS_AHEAD * prompts),
                start=start,
            ),
            rules=run.rules(recipe),
            on_step=note,
            health=Health(hang_after=3600.0),
        )
        trainer.init()
        agents = QuestionGroupManager.create(
            config=trainer.config,
            llm_client=ConstantEngine(answer, share=rollouts // nodes),
            teacher_client=None,
            reward_loop_worker_handles=[],
        )
        trainer.fit(agents)
        tq.close()
    return summed_up(rollouts, nodes, answer, ends, phases)


def summed_up(
    rollouts: int, nodes: int, answer: float, ends: list[tuple[float, float, float]], phases: list[dict[str, float]]
) -> dict[str, Any]:
    """A size's numbers. ends: time, and both kinds of CPU, at the end of each step; phases: seconds of each."""
    first = len(ends) // 4  # of those that count
    pairs = itertools.pairwise(ends[first - 1 :])
    steps = [[late - early for early, late in zip(*pair, strict=True)] for pair in pairs]
    walls = [(wall - answer) * 1e3 / rollouts for wall, *_ in steps]
    cpu, rays = (statistics.median(step[part] for step in steps) * 1e3 / rollouts for part in (1, 2))

    def each(name: str) -> float:
        return statistics.median(phase.get(name, 0.0) for phase in phases[first:]) * 1e3 / rollouts

    sample = each("gen") - each("ask") - answer * 1e3 / rollouts
    batch = each("old_log_prob") + each("adv")
    return {
        "rollouts": rollouts,
        "nodes": nodes,
        "ms": {"median": statistics.median(walls), "least": min(walls), "most": max(walls)},
        "cpu_ms": cpu,
        "ray_cpu_ms": rays,
        "ask": each("ask"),
        "sample": sample,
        "batch": batch,
        "record": statistics.median(walls) - each("ask") - sample - batch,
    }


def _cpu() -> tuple[float, float]:
    """Seconds of CPU of this run's processes, found by the variable that they were given, and of Ray's daemons."""
    import contestants

    spent = {True: 0.0, False: 0.0}
    for process in contestants.processes(os.environ[contestants.MARK]):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:  # gone
            continue
        spent[any(part in command for part in DAEMONS)] += contestants.cpu_seconds_of(process)
    return spent[False], spent[True]


def make(folder: Path, most: int, *, corrected: bool) -> None:
    """The questions, as many as the largest step has, and the model, of which only the processor is used."""
    from pathor1.data.rendered import render
    from pathor1.model import tiny

    train = render(folder, seed=0, counts={"train": min(4096, max(64, most // GROUP))})["train"]
    tiny.make(folder / "model", [train], seed=0)
    recipe = RECIPE.replace("FOLDER", str(folder)) + (CORRECTED if corrected else "")
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    ms = found["ms"]
    parts = "  ".join(f"{name} {found[name]:.2f}" for name in ("ask", "sample", "batch", "record"))
    cpu = f"CPU {found['cpu_ms']:6.2f} ms  Ray {found['ray_cpu_ms']:5.2f}"
    return (
        f"rollouts {found['rollouts']:>6}  nodes {found['nodes']:>2}  {ms['median']:7.2f} ms "
        f"({ms['least']:.2f} to {ms['most']:.2f})  {cpu}  {parts}"
    )


def main() -> None:
    """Measures all sizes, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, nargs="*", default=[64, 512, 4096, 32768])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--corrected", action="store_true", help="weigh rollouts by the actor's log-probabilities")
    # Short, as the agent is at work on other questions meanwhile, and small steps would seem to cost nothing.
    parser.add_argument("--answer", type=float, default=0.05, help="seconds that an answer takes")
    parser.add_argument("--folder", type=Path, help="where questions and runs are made and kept")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        from pathor1.fork_server import import_and_fork
        from pathor1.rl.imported import EARLY, LATE, VARIABLES

        import_and_fork(EARLY, LATE, VARIABLES)  # as a run does
        (rollouts,), (nodes,) = arguments.rollouts, arguments.nodes
        print(json.dumps(measure(arguments.one, rollouts, nodes, arguments.answer)))
        return
    import contestants

    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        make(folder, max([ON_NODES, *arguments.rollouts]), corrected=arguments.corrected)
        wanted = [
            *((rollouts, 1) for rollouts in arguments.rollouts),
            *((ON_NODES, nodes) for nodes in arguments.nodes),
        ]
        for rollouts, nodes in wanted:
            results.append(_in_own_process(folder, rollouts, nodes, arguments.answer))
            print(row(results[-1]), flush=True)
    if arguments.out:
        told = {"machine": contestants.machine(), "sizes": results}
        arguments.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _in_own_process(folder: Path, rollouts: int, nodes: int, answer: float) -> dict[str, Any]:
    import contestants

    # Of this process too: the nodes have them from here.
    os.environ.update({contestants.MARK: f"growth-{os.getpid()}-{rollouts}-{nodes}", "SPT_NOENV": "1"})
    command = [sys.executable, __file__, "--one", str(folder), "--rollouts", str(rollouts)]
    command += ["--nodes", str(nodes), "--answer", str(answer)]
    with _cluster(nodes) if nodes > 1 else nullcontext({}) as joins:
        done = subprocess.run(command, env={**os.environ, **joins}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def _cluster(nodes: int) -> Iterator[dict[str, str]]:
    """So many Ray nodes on this machine; gives the variables by which they are joined."""
    from ray.cluster_utils import Cluster

    from pathor1.ray_cluster import PRESTART

    os.environ.setdefault(PRESTART, "0")  # or each node starts workers that nobody uses, one for each of its CPUs
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            made.add_node(num_cpus=4, wait=True)
        yield {"RAY_ADDRESS": made.address}
    finally:
        made.shutdown()


if __name__ == "__main__":
    main()
