"""Starts, resumes and ends an RL run: the recipe in, the run folder out."""

from __future__ import annotations

import gc
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pathor1 import attempts, files, interpreter
from pathor1.data.stream import Reading, SampleStream, Source, StreamState
from pathor1.errors import Fault, UserError
from pathor1.fork_server import own_launcher
from pathor1.model.check import largest_weight
from pathor1.ray_cluster import choose_accelerator, forked_by, ray_cluster, refuse_second_run
from pathor1.recipe import Recipe, to_toml
from pathor1.rl import faults, placement, preflight, starts
from pathor1.rl.algorithms import resolve
from pathor1.rl.groups import REASONS, Rules
from pathor1.rl.imported import ON_CPU
from pathor1.rl.stopping import Stopped
from pathor1.rl.verl_config import batches_ahead, build, carries
from pathor1.runs import RunFolder
from pathor1.samples import Sample

if TYPE_CHECKING:
    from pathor1.rl.agent import QuestionGroupManager
    from pathor1.rl.health import Health
    from pathor1.rl.trainer import RLTrainer

# Bytes of a model's largest weight from which on a CPU's ranks and engines share its cores, see `cpu_threads`: smaller
# ones are multiplied sooner than a second thread has woken up.
WORTH_THREADS = 1 << 20
# Steps whose questions lie ready: reading more while a run starts takes CPUs from what it waits for.
STEPS_AHEAD = 4
# Seconds that a run has to leave Ray when it has failed, as some waits for what has died never end; and that Ray has to
# take down what the attempt before has left.
TO_END, TAKEN_DOWN = 45.0, 60.0


def train(recipe: Recipe) -> RunFolder:
    """Runs GRPO or DAPO as the recipe says and returns the run's folder.

    `recipe` has absolute paths (`pathor1.storage.absolute`). A run whose folder holds a checkpoint goes on behind it.
    Joins the Ray cluster of `RAY_ADDRESS` (in a Ray job: its own) or starts one for itself. Raises UserError for
    whatever in the input makes the run impossible, and SystemExit after SIGTERM, with a checkpoint where it had begun.
    """
    # verl's own progress bar, which would write over the lines of steps; tqdm looks when it is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    accelerator = choose_accelerator(recipe)
    starts.refuse_missing(recipe, accelerator)
    found = starts.check(recipe)
    reward = starts.reward(recipe, found)
    preflight.refuse_what_cannot_fit(recipe, found, accelerator=accelerator)
    try:
        with ray_cluster(
            _environment(recipe, accelerator),
            object_store_gb=recipe.cluster.object_store_gb,
            secrets=recipe.cluster.secrets,
            python=forked_by(own_launcher()),
        ):
            refuse_second_run(wait=TAKEN_DOWN if attempts.number() > 1 else 0.0)
            # Ray sets the variable for its jobs. A cluster that is started here is nobody else's.
            placement.require(
                placement.asked(recipe, accelerator),
                shared="RAY_ADDRESS" in os.environ,
                wait=recipe.cluster.wait_for_nodes,
            )
            config = build(recipe, accelerator=accelerator)
            folder = RunFolder.create(recipe.runs_dir, recipe.name)
            files.write(folder.recipe, to_toml(recipe))
            if reward is not None and reward.program.source is not None:
                files.write(folder.reward_function, reward.program.source)
            _fit(recipe, accelerator, config, folder, found, reward)
    except Stopped as stopped:  # said when Ray is left, and with it the last of what its processes say
        print(f"{recipe.name}: stopped behind step {stopped}; the same command goes on", flush=True)
        raise SystemExit(128 + signal.SIGTERM) from None
    return folder


def dry_run(recipe: Recipe) -> str:
    """The recipe with every value, and the verl config it becomes, as one JSON object."""
    from omegaconf import OmegaConf

    wanted = recipe.cluster.accelerator
    config = build(recipe, accelerator=choose_accelerator(recipe) if wanted == "auto" else wanted)
    resolved: Any = OmegaConf.to_container(config, resolve=False)
    return json.dumps({"recipe": recipe.model_dump(mode="json"), "verl": resolved}, indent=2)


def _environment(recipe: Recipe, accelerator: str) -> dict[str, str]:
    with _importing():
        from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    variables: dict[str, str] = dict(get_ppo_ray_runtime_env()["env_vars"])
    variables |= {"TRANSFER_QUEUE_ENABLE": "1", "VERL_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false"}
    # A word that is in no other run's names, see `pathor1.backends.weight_sockets`.
    variables["PATHOR1_WEIGHT_SOCKETS"] = secrets.token_hex(8)
    if accelerator == "cpu":
        variables |= {
            "VLLM_CPU_KVCACHE_SPACE": str(recipe.rollout.cpu_kv_cache_gb),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **ON_CPU,
        }
        if "OMP_NUM_THREADS" not in os.environ and largest_weight(recipe.model.path) >= WORTH_THREADS:
            variables["PATHOR1_RANKS_PER_NODE"] = str(recipe.cluster.accelerators_per_node)
    return variables


@contextmanager
def _importing() -> Iterator[None]:
    """Without Python's garbage collector, which looks through all that is imported again and again: for seconds.

    Nor does it look there later, in the middle of a step, which would take it a third of a second each time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _fit(
    recipe: Recipe,
    accelerator: str,
    config: Any,
    folder: RunFolder,
    found: Sequence[Source],
    reward: starts.Reward | None,
) -> None:
    import transfer_queue as tq
    from omegaconf import OmegaConf

    started = time.monotonic()
    print(f"{recipe.name}: starting the actor, vLLM and the agent on the {accelerator}", flush=True)
    OmegaConf.resolve(config)
    _start_queue(config)
    from pathor1.rl.health import Health
    from pathor1.rl.modes import TRAINERS

    def make_stream(start: StreamState | None) -> SampleStream[Sample]:
        reading = Reading.of(recipe.data, rows_ahead=STEPS_AHEAD * recipe.rl.prompts_per_step)
        return SampleStream(found, seed=recipe.seed, reading=reading, start=start)

    def report(step: int, values: dict[str, float]) -> None:
        print(step_line(recipe, step, values, time.monotonic() - started), flush=True)
        attempts.report_step(step)

    health = Health(hang_after=recipe.cluster.hang_after)
    health.start()
    try:
        trainer = TRAINERS[recipe.rl.mode](
            config,
            recipe=recipe,
            folder=folder,
            make_stream=make_stream,
            rules=rules(recipe, batches_ahead(recipe, config)),
            on_step=report,
            health=health,
        )
        trainer.init()
        agents = _agents(trainer, reward)
        health.engines(trainer.engines.server_handles)
        interpreter.settle()
        print(f"{recipe.name}: ready after {time.monotonic() - started:.0f} s", flush=True)
        attempts.report_ready()
        trainer.fit(agents)
    except Stopped:
        raise
    except Exception as error:
        fault = _explained(error, health)
        if fault is error:
            raise
        raise fault from error
    finally:
        health.close()
        sys.stdout.flush()
        tq.close()


def _start_queue(config: Any) -> None:
    """Starts the queue's processes, and loads verl meanwhile."""
    import transfer_queue as tq

    _spare_cpus()
    with _importing(), ThreadPoolExecutor(1) as beside:
        queue = beside.submit(tq.init, config.transfer_queue)
        from verl.utils.logging_utils import configure_verl_logging

        import pathor1.rl.agent
        import pathor1.rl.modes  # noqa: F401 (what takes long to import)

        configure_verl_logging()
        queue.result()


def _agents(trainer: RLTrainer, reward: starts.Reward | None) -> QuestionGroupManager:
    """Those that generate, which judge by the run's own function where it has one."""
    from pathor1.rl.agent import QuestionGroupManager

    agents: QuestionGroupManager = QuestionGroupManager.create(
        config=trainer.config,
        llm_client=trainer.get_llm_client(),
        teacher_client=None,
        reward_loop_worker_handles=trainer.get_reward_handles(),
    )
    if reward is not None:
        agents.reward_by(reward.program, reward.sample)
    return agents


def _explained(error: Exception, health: Health) -> Exception:
    """What a run has failed of, which ends it soon whatever still waits: a Fault in one line, or the error itself."""
    if isinstance(error, UserError):
        attempts.end_within(TO_END, str(error), code=2)
        return error
    reason = health.explain(error) or faults.outside(error)
    attempts.end_within(TO_END, reason or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return error if reason is None else Fault(reason)


def _spare_cpus() -> None:
    """The queue's actors mostly wait and ask for a CPU each, on a node that may have none to spare for them.

    Its controller is our own, see `queue_controller`.
    """
    import ray
    from transfer_queue import interface
    from transfer_queue.storage import SimpleStorageUnit

    from pathor1.rl.queue_controller import TransferQueueController

    interface.TransferQueueController = ray.remote(num_cpus=0)(TransferQueueController)
    SimpleStorageUnit._default_options = {**SimpleStorageUnit._default_options, "num_cpus": 0}


def rules(recipe: Recipe, ahead: float = 0.0) -> Rules:
    """What the recipe says of groups. ahead: batches that are asked for before their step."""
    rl = recipe.rl
    low, high = rl.keep_pass_rate
    return Rules(
        batch=rl.prompts_per_step,
        dynamic=resolve(rl).dynamic_sampling,
        budget=int(rl.max_generated_groups * rl.prompts_per_step),
        min_groups=rl.min_groups,
        max_carry_steps=rl.carry_steps if carries(recipe) else 0,
        band=(low, high),
        ahead=int(ahead * rl.prompts_per_step),
        steps=rl.steps,
    )


def step_line(recipe: Recipe, step: int, values: dict[str, float], elapsed: float) -> str:
    """One line that says where the run is: what it learns, whether it is healthy, how long a step takes."""
    if values["steps/skipped"]:
        reasons = ", ".join(f"{values[f'dropped/{reason}']:.0f} {reason}" for reason in REASONS)
        return (
            f"step {step}/{recipe.rl.steps}  no update: too few of {values['groups/asked']:.0f} groups have a "
            f"difference to learn from ({reasons})  {values['seconds/step']:.1f} s  [{elapsed:.0f} s]"
        )
    difference = values.get("rollout/probability_difference_max")  # a step may have nothing to measure it by
    return (
        f"step {step}/{recipe.rl.steps}  "
        f"accuracy {values['reward/accuracy']:.3f}  format {values['reward/format']:.3f}  "
        f"informative {values['groups/informative']:.0f}/{values['groups/trained']:.0f}  "
        f"asked {values['groups/asked']:.0f}  "
        f"kl {values.get('actor/kl', 0.0):.4f}  entropy {values['actor/entropy']:.3f}  "
        f"probability difference {'-' if difference is None else f'{difference:.1e}'}  "
        f"{values['seconds/step']:.1f} s  [{elapsed:.0f} s]"
    )
