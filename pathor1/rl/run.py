"""Starts, resumes and ends an RL run: the recipe in, the run folder out."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pathor1 import files
from pathor1.data.first_look import first_look
from pathor1.data.sources import sources
from pathor1.data.stream import Reading, SampleStream, Source, StreamState, refuse_other
from pathor1.errors import RecipeError, RunError
from pathor1.model.check import check as check_model
from pathor1.ray_cluster import check_nodes, check_resources, choose_accelerator, ray_cluster, refuse_second_run
from pathor1.recipe import Recipe, to_toml
from pathor1.rl import checkpoints, preflight
from pathor1.rl.algorithms import resolve
from pathor1.rl.groups import REASONS, Rules
from pathor1.rl.verl_config import build
from pathor1.runs import RunFolder

# What verl reserves beside a GPU, for the processes that share it.
CPUS_PER_RANK = 3


def train(recipe: Recipe, *, resume: bool = False) -> RunFolder:
    """Runs GRPO or DAPO as the recipe says and returns the run's folder.

    `recipe` has absolute paths (`pathor1.storage.absolute`). With `resume` the run goes on behind its last
    checkpoint, from the start where there is none. Joins the Ray cluster of `RAY_ADDRESS` (in a Ray job: its own)
    or starts one for itself. Raises UserError for whatever in the input makes the run impossible.
    """
    # verl's own progress bar, which would write over the lines of steps; tqdm looks when it is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    check_model(recipe.model.path)
    _check_trackers(recipe)
    data = recipe.data
    found = sources(data)
    paths = list(dict.fromkeys(group.file for source in found for group in source.groups))
    first_look(paths, tasks=data.tasks, min_pixels=data.min_pixels, max_pixels=data.max_pixels)
    if resume:
        _refuse_hopeless(recipe, found)
    else:
        _refuse_taken(recipe)
    accelerator = choose_accelerator(recipe)
    preflight.refuse_what_cannot_fit(recipe, found, accelerator=accelerator)
    with ray_cluster(_environment(recipe, accelerator), object_store_gb=recipe.cluster.object_store_gb):
        _check_resources(recipe, accelerator)
        config = build(recipe, accelerator=accelerator)
        folder = RunFolder.create(recipe.runs_dir, recipe.name)
        files.write(folder.recipe, to_toml(recipe))
        _fit(recipe, accelerator, config, folder, found)
    return folder


def dry_run(recipe: Recipe) -> str:
    """The recipe with every value, and the verl config it becomes, as one JSON object."""
    from omegaconf import OmegaConf

    wanted = recipe.cluster.accelerator
    config = build(recipe, accelerator=choose_accelerator(recipe) if wanted == "auto" else wanted)
    resolved: Any = OmegaConf.to_container(config, resolve=False)
    return json.dumps({"recipe": recipe.model_dump(mode="json"), "verl": resolved}, indent=2)


def _check_trackers(recipe: Recipe) -> None:
    """Raises RecipeError for a tracker whose package is not installed: verl would find out when all is started."""
    for name in recipe.trackers:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(f'trackers = ["{name}"]: {name} is not installed; pip install "pathor1[{name}]"')


def _refuse_taken(recipe: Recipe) -> None:
    folder = RunFolder(Path(recipe.runs_dir) / recipe.name)
    if folder.metrics.exists() or checkpoints.complete(folder.checkpoints):
        raise RunError(
            f"{folder.path}: a run of this name is there already; go on with it by "
            f"`pathor1 rl --resume {folder.path}`, or choose another name"
        )


def _refuse_hopeless(recipe: Recipe, found: Sequence[Source]) -> None:
    """Raises UserError where a run cannot go on: its steps are done, or its data has changed."""
    folder = RunFolder(Path(recipe.runs_dir) / recipe.name)
    last = checkpoints.latest(folder.checkpoints)
    if last is None:
        return
    manifest = checkpoints.read(last)
    refuse_other(found, manifest.stream)
    if manifest.step >= recipe.rl.steps:
        raise RunError(f"{folder.path}: has done its {recipe.rl.steps} steps; for more, --set rl.steps=NUMBER")


def _environment(recipe: Recipe, accelerator: str) -> dict[str, str]:
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    variables: dict[str, str] = dict(get_ppo_ray_runtime_env()["env_vars"])
    variables |= {"TRANSFER_QUEUE_ENABLE": "1", "VERL_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false"}
    if accelerator == "cpu":
        variables |= {
            "VLLM_CPU_KVCACHE_SPACE": str(recipe.rollout.cpu_kv_cache_gb),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return variables


def _check_resources(recipe: Recipe, accelerator: str) -> None:
    """Raises RunError for what Ray would wait for without end, and where another run has the cluster's queue."""
    nodes, each = recipe.cluster.nodes, recipe.cluster.accelerators_per_node
    what = f"{nodes * each} ranks (cluster.nodes x cluster.accelerators_per_node)"
    if accelerator == "cpu":
        check_nodes(nodes, {"CPU": each})
        check_resources("CPU", nodes * each + 1, f"{what} and the stream")
    else:
        check_nodes(nodes, {"GPU": each, "CPU": CPUS_PER_RANK * each})
        # The queue: one process for each rank and one for all.
        check_resources("CPU", (CPUS_PER_RANK + 1) * nodes * each + 2, f"{what}, the queue and the stream")
    refuse_second_run()


def _fit(recipe: Recipe, accelerator: str, config: Any, folder: RunFolder, found: Sequence[Source]) -> None:
    import transfer_queue as tq
    from omegaconf import OmegaConf

    started = time.monotonic()
    print(f"{recipe.name}: starting the actor, vLLM and the agent on the {accelerator}", flush=True)
    OmegaConf.resolve(config)
    if accelerator == "cpu":
        _spare_cpus()
    with ThreadPoolExecutor(1) as beside:  # the queue's processes start while this one loads verl
        queue = beside.submit(tq.init, config.transfer_queue)
        from verl.utils.logging_utils import configure_verl_logging

        from pathor1.rl.agent import QuestionGroupManager
        from pathor1.rl.trainer import RLTrainer

        configure_verl_logging()
        queue.result()

    def make_stream(start: StreamState | None) -> SampleStream:
        return SampleStream(found, seed=recipe.seed, reading=Reading.of(recipe.data), start=start)

    def report(step: int, values: dict[str, float]) -> None:
        print(step_line(recipe, step, values, time.monotonic() - started), flush=True)

    try:
        trainer = RLTrainer(
            config,
            recipe=recipe,
            folder=folder,
            make_stream=make_stream,
            rules=rules(recipe),
            on_step=report,
        )
        trainer.init()
        agents = QuestionGroupManager.create(
            config=config,
            llm_client=trainer.get_llm_client(),
            teacher_client=None,
            reward_loop_worker_handles=trainer.get_reward_handles(),
        )
        print(f"{recipe.name}: ready after {time.monotonic() - started:.0f} s", flush=True)
        trainer.fit(agents)
    finally:
        sys.stdout.flush()
        tq.close()


def _spare_cpus() -> None:
    """The queue's two actors mostly wait and ask for a CPU each; a laptop with two has none to spare for them."""
    from transfer_queue.controller import TransferQueueController
    from transfer_queue.storage import SimpleStorageUnit

    for actor in (TransferQueueController, SimpleStorageUnit):
        actor._default_options = {**actor._default_options, "num_cpus": 0}


def rules(recipe: Recipe) -> Rules:
    """What the recipe says of dynamic sampling."""
    rl = recipe.rl
    low, high = rl.keep_pass_rate
    return Rules(
        batch=rl.prompts_per_step,
        dynamic=resolve(rl).dynamic_sampling,
        budget=int(rl.max_generated_groups * rl.prompts_per_step),
        min_groups=rl.min_groups,
        max_carry_steps=rl.max_carry_steps,
        band=(low, high),
    )


def step_line(recipe: Recipe, step: int, values: dict[str, float], elapsed: float) -> str:
    """One line that says where the run is: what it learns, whether it is healthy, how long a step takes."""
    if values["steps/skipped"]:
        reasons = ", ".join(f"{values[f'dropped/{reason}']:.0f} {reason}" for reason in REASONS)
        return (
            f"step {step}/{recipe.rl.steps}  no update: too few of {values['groups/asked']:.0f} groups have a "
            f"difference to learn from ({reasons})  {values['seconds/step']:.1f} s  [{elapsed:.0f} s]"
        )
    return (
        f"step {step}/{recipe.rl.steps}  "
        f"accuracy {values['reward/accuracy']:.3f}  format {values['reward/format']:.3f}  "
        f"informative {values['groups/informative']:.0f}/{values['groups/trained']:.0f}  "
        f"asked {values['groups/asked']:.0f}  "
        f"kl {values.get('actor/kl', 0.0):.4f}  entropy {values['actor/entropy']:.3f}  "
        f"probability difference {values['rollout/probability_difference_max']:.1e}  "
        f"{values['seconds/step']:.1f} s  [{elapsed:.0f} s]"
    )
