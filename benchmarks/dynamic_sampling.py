"""Dynamic sampling: pathor1's beside verl's own, where half of the questions carry no signal.

    .venv/bin/python benchmarks/dynamic_sampling.py --steps 16 --out dynamic_sampling.json

A small model that has learned the form of an answer, and guesses, is trained by DAPO on questions of which half have a
right answer that it never gives. All runs are the same trainer, agent, engine, model, questions and seed; what differs
is who decides what is asked, kept and dropped: verl 0.9.1's `ReplayBuffer`, as verl's synchronous trainer makes it,
with the raw accuracy as its filter's metric; `pathor1.rl.sampler`; or the same with `rl.revisit_every = 4`, which asks
what was always wrong, or always right, in one of four epochs. An epoch is 64 questions, some three steps.

No sampler can know which questions carry no signal before it has asked them: in the first epoch the last two ask alike,
and gain on verl's only what that throws away. From the second epoch on `revisit` gains by not asking all of the
hopeless half again, so that its share of the whole run grows with the number of epochs: the share of each epoch is told
too. Its price is that a question that has become answerable is found so later, by up to three epochs.

share        Tokens that were learned from, of all that were generated; by epoch, of those that were generated for it.
update s     Seconds of a step, the median; the first one, in which processes start, is left out.
thrown away  Groups with a difference that were neither learned from nor carried to the next step; those that still wait
             behind the last step are `waiting`.

With `--folder` all is kept there, and runs that are there already are only told of: one can be made at a time, by
`--samplers`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

SAMPLERS = ("verl", "pathor1", "revisit")
QUESTIONS = 64
RECIPE = """
name = "run"

[model]
path = "FOLDER/guesser"
dtype = "float32"
gradient_checkpointing = false

[data]
train = ["FOLDER/half.parquet"]
system_prompt = "none"
max_prompt_tokens = 160
min_pixels = 3136
max_pixels = 3136
workers = 1

[rl]
algorithm = "dapo"
steps = 8
prompts_per_step = 8
group_size = 8
prompts_per_update = 8
max_response_tokens = 64
learning_rate = 1e-4
save_every = 1000
max_tokens_per_update = 8192

[rl.reward]
overlong_cache_tokens = 16

[rollout]
max_batched_tokens = 2048

[cluster]
accelerators_per_node = 1

[warm_start]
model = "FOLDER/base"
data = ["FOLDER/train.parquet"]
steps = 80
batch_size = 16
warmup_steps = 4
learning_rate = 3e-3
"""


def make(folder: Path) -> Path:
    """The questions, the model that guesses, and the recipe."""
    from pathor1.data.rendered import render
    from pathor1.model import tiny
    from pathor1.samples import read, write

    train = render(folder, seed=0, counts={"train": 400})["train"]
    tiny.make(folder / "base", [train], seed=0)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.replace("FOLDER", str(folder)), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "pathor1.cli", "sft", str(recipe), "--set", f"runs_dir={folder}"], check=True)
    samples = [sample for sample in read(train) if len(sample.options or ()) == 4]
    half = QUESTIONS // 2
    six = ("one", "two", "three", "four", "five", "six")
    hopeless = [
        replace(sample, id=f"hopeless/{sample.id}", options=six, answer="F") for sample in samples[half:QUESTIONS]
    ]
    write([*samples[:half], *hopeless], folder / "half.parquet")
    return recipe


def tell_verls_sampler() -> None:
    """Has our agent put into the queue what verl's replay buffer reads there."""
    import ray
    import transfer_queue as tq

    from pathor1.rl import agent
    from pathor1.rl.groups import Group

    class Worker(agent.QuestionGroupWorker):
        async def _run_prompt(self, prompt: dict[str, Any], *arguments: Any, **options: Any) -> None:
            fields = agent.queue_fields

            def with_accuracy(uid: str, shared: Any, rollout: Any, *rest: Any, **more: Any) -> dict[str, Any]:
                info = {"reward_extra_info": {"accuracy": rollout.score.accuracy}}
                return {**fields(uid, shared, rollout, *rest, **more), "extra_fields": info}

            if fields.__name__ != with_accuracy.__name__:
                agent.queue_fields = with_accuracy
            await tq.async_kv_put(key=prompt["uid"], partition_id="train", tag={"status": "running"})
            await super()._run_prompt(prompt, *arguments, **options)
            await tq.async_kv_put(key=prompt["uid"], partition_id="train", tag={"status": "finished"})

        async def all_finished(self) -> list[Group]:
            return [self._finished.get_nowait() for _ in range(self._finished.qsize())]

    class Manager(agent.QuestionGroupManager):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.agent_loop_workers_class = ray.remote(Worker)

    agent.QuestionGroupManager = Manager  # type: ignore[misc]


def use_verls_sampler() -> None:
    """Puts verl's replay buffer into our trainer."""
    import ray
    from verl.trainer.ppo.v1 import PPOTrainerSync
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    from pathor1.rl import modes
    from pathor1.rl.groups import Dropped, Pool, Selection, verdict

    class Sampler(ReplayBuffer):
        def watch(self, agents: Sequence[Any]) -> None:
            self.agents = agents

        def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
            batch, metrics = super().sample(global_steps, partition_id, batch_size)
            groups = [group for agent in self.agents for group in ray.get(agent.all_finished.remote())]
            assert not any(group.error for group in groups)
            chosen = {int(key.split("_")[0]) for key in batch.keys}
            selection = Selection(
                groups=tuple(group for group in groups if group.number in chosen),
                dropped=tuple(
                    Dropped(group=group, reason=verdict(group, self.pool.rules) or "budget")
                    for group in groups
                    if group.number not in chosen
                ),
                asked=len(groups),
                carried=(),
            )
            self.selections, self.under_way = [selection], {}
            return batch, metrics

        def begin(self, step: int) -> None:
            """verl's begins a step by itself."""

        def forget_dropped(self) -> None:
            """Takes what is dropped out of the queue: verl's has done that by itself."""

    class Trainer(modes.Sync):
        def _build_replay_buffer(self) -> Any:
            config = self.config
            sampler = Sampler(
                trainer_mode="sync",
                trainer_config=config.trainer.v1.sync,
                max_off_policy_threshold=None,
                max_off_policy_strategy="drop",
                sampler_kwargs=config.trainer.v1.sampler.sampler_kwargs,
                refill_fn=self._add_prompts_to_generate,
                filter_groups_metric="accuracy",
                train_batch_size=config.data.train_batch_size,
                gen_batch_size=1,
            )
            sampler.pool, sampler.under_way = Pool(self.rules), {}
            return sampler

        def prepare_step(self) -> dict[str, Any]:
            super().prepare_step()
            return PPOTrainerSync.prepare_step(self)

    modes.TRAINERS["sync"] = Trainer


def measure(folder: Path) -> dict[str, Any]:
    """What the run's metrics and ledger say, all steps together."""
    import numpy as np
    import pyarrow.parquet as pq

    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rollouts = pq.read_table(folder / "ledger", columns=["group", "response_tokens", "dropped"])
    tokens = rollouts["response_tokens"].to_numpy()
    trained = tokens * rollouts["dropped"].is_null().to_numpy()
    # A group's number counts all questions of the stream before it, also those that were passed over.
    epochs = np.array([int(group) for group in rollouts["group"].to_pylist()]) // QUESTIONS

    def total(name: str) -> float:
        return sum(step[name] for step in steps)

    return {
        "share": round(float(trained.sum() / tokens.sum()), 3),
        "share_by_epoch": [
            round(float(trained[epochs == epoch].sum() / tokens[epochs == epoch].sum()), 3)
            for epoch in np.unique(epochs)
        ],
        "update_s": round(statistics.median(step["seconds/step"] for step in steps[1:]), 2),
        "thrown_away": total("dropped/budget") + total("dropped/stale"),
        "waiting": steps[-1]["carried/to_next"],
        "asked": total("groups/asked"),
        "trained": total("groups/trained"),
        "updates": sum(not step["steps/skipped"] for step in steps),
    }


def is_done(folder: Path, steps: int) -> bool:
    """Whether a run is there with all of its steps."""
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and len(metrics.read_text(encoding="utf-8").splitlines()) == steps


def make_run(name: str, recipe: Path, steps: int) -> None:
    """One run, in this process."""
    from pathor1.recipe import load
    from pathor1.rl import run

    if name == "verl":
        tell_verls_sampler()
        use_verls_sampler()
    # verl keeps nothing for the next step, so that there is no importance to correct.
    differs = {"verl": ["rl.max_carry_steps=0"], "pathor1": [], "revisit": ["rl.revisit_every=4"]}
    run.train(load(recipe, [f"runs_dir={recipe.parent / name}", f"rl.steps={steps}", *differs[name]]))


def main() -> None:
    """Makes the runs that are wanted and not there, each in a process of its own, and tells of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--samplers", nargs="*", default=SAMPLERS, choices=SAMPLERS, help="none: only the questions")
    parser.add_argument("--folder", type=Path, help="where questions, model and runs are made and kept")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    parser.add_argument("--one", nargs=2, metavar=("SAMPLER", "RECIPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        make_run(arguments.one[0], Path(arguments.one[1]), arguments.steps)
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        recipe = folder / "recipe.toml"
        if not (folder / "half.parquet").exists():
            make(folder)
        for name in SAMPLERS:
            made = folder / name / "run"
            if name in arguments.samplers and not is_done(made, arguments.steps):
                command = [sys.executable, __file__, "--steps", str(arguments.steps), "--one", name, str(recipe)]
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
                if ran.returncode:
                    sys.exit(f"{name}: {ran.stderr[-3000:]}")
            if not is_done(made, arguments.steps):
                continue
            results.append({"sampler": name, **measure(made)})
            print(
                "{sampler:<8}  share {share:.3f}  update {update_s:6.2f} s  thrown away {thrown_away:3.0f}  "
                "asked {asked:4.0f}  trained {trained:4.0f}  waiting {waiting:3.0f}  by epoch {epochs}".format(
                    **results[-1], epochs=" ".join(f"{share:.2f}" for share in results[-1]["share_by_epoch"])
                ),
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
