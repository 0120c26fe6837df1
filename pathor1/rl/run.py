"""Starts, resumes and ends an RL run: the recipe in, the run folder out."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from pathor1 import files
from pathor1.data.stream import Cursor, SampleStream, expand, row_groups
from pathor1.errors import RunError
from pathor1.model.check import check as check_model
from pathor1.recipe import Recipe, to_toml
from pathor1.rl import checkpoints
from pathor1.runs import RunFolder


def train(recipe: Recipe, *, resume: bool = False) -> RunFolder:
    """Runs GRPO or DAPO as the recipe says and returns the run's folder.

    `recipe` has absolute paths (`pathor1.storage.absolute`). With `resume` the run goes on behind its last
    checkpoint, from the start where there is none. Joins the Ray cluster of `RAY_ADDRESS` (in a Ray job: its own)
    or starts one for itself. Raises UserError for whatever in the input makes the run impossible.
    """
    check_model(recipe.model.path)
    row_groups(expand(recipe.data.train))
    accelerator = choose_accelerator(recipe)
    folder = _open_folder(recipe, resume=resume)
    with ray_cluster(recipe, accelerator):
        _check_resources(recipe, accelerator)
        _fit(recipe, accelerator, folder)
    return folder


def dry_run(recipe: Recipe) -> str:
    """The resolved recipe (TOML, as a comment's worth of text) and the verl config it becomes, as one JSON object."""
    from omegaconf import OmegaConf

    from pathor1.rl.verl_config import build

    config = build(recipe, accelerator=choose_accelerator(recipe))
    resolved: Any = OmegaConf.to_container(config, resolve=False)
    return json.dumps({"recipe": recipe.model_dump(mode="json"), "verl": resolved}, indent=2)


def choose_accelerator(recipe: Recipe) -> str:
    """ "cpu" or "gpu": what the recipe asks for, or what torch was built for. Raises RunError where they disagree."""
    import torch

    found = "cpu" if torch.version.cuda is None and torch.version.hip is None else "gpu"
    wanted = recipe.cluster.accelerator
    if wanted not in ("auto", found):
        raise RunError(
            f"cluster.accelerator is {wanted!r} and this environment's torch {torch.__version__} is built for the "
            f"{found}; install pathor1[{wanted}] or set cluster.accelerator = 'auto'"
        )
    return found


def _open_folder(recipe: Recipe, *, resume: bool) -> RunFolder:
    folder = RunFolder.create(recipe.runs_dir, recipe.name)
    if not resume and (folder.metrics.exists() or checkpoints.complete(folder.checkpoints)):
        raise RunError(
            f"{folder.path}: a run of this name is there already; go on with it by "
            f"`pathor1 rl --resume {folder.path}`, or choose another name"
        )
    files.write(folder.recipe, to_toml(recipe))
    return folder


@contextmanager
def ray_cluster(recipe: Recipe, accelerator: str) -> Iterator[None]:
    """Joins a Ray cluster or starts one, with the environment that all processes of the run need."""
    import ray

    environment = _environment(recipe, accelerator)
    in_job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {})
    # Ray refuses a variable that both the job and its driver set; the job's user set it on purpose.
    variables = {name: value for name, value in environment.items() if name not in in_job.get("env_vars", {})}
    os.environ.update({name: value for name, value in variables.items() if name not in os.environ})
    joins = bool(os.environ.get("RAY_ADDRESS")) or bool(in_job)
    started = ray.is_initialized()
    if not started:
        ray.init(
            address="auto" if joins else "local",
            num_cpus=None if joins else max(os.cpu_count() or 1, 4),
            object_store_memory=_object_store_bytes(recipe, joins),
            runtime_env={"env_vars": variables},
            log_to_driver=True,
            include_dashboard=None if joins else False,
        )
    previous = signal.signal(signal.SIGTERM, _terminate)  # after ray.init(), which installs its own
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        if not started:
            ray.shutdown()


def _terminate(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def _object_store_bytes(recipe: Recipe, joins: bool) -> int | None:
    size = recipe.cluster.object_store_gb
    return None if joins or size is None else int(size * 1e9)


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
    """A cluster that is too small is an error at once; Ray would wait for nodes without end and without a word."""
    import ray

    ranks = recipe.cluster.nodes * recipe.cluster.accelerators_per_node
    kind = {"cpu": "CPU", "gpu": "GPU"}[accelerator]
    needed = ranks + 1 if accelerator == "cpu" else ranks  # one more CPU for the stream
    found = ray.cluster_resources().get(kind, 0)
    if found < needed:
        raise RunError(
            f"{ranks} ranks (cluster.nodes x cluster.accelerators_per_node) need {needed} {kind}s and the Ray cluster "
            f"has {found:g}; ask for fewer, or add nodes"
        )


def _fit(recipe: Recipe, accelerator: str, folder: RunFolder) -> None:
    import transfer_queue as tq
    from omegaconf import OmegaConf
    from verl.utils.logging_utils import configure_verl_logging

    from pathor1.rl.agent import QuestionGroupManager
    from pathor1.rl.trainer import RLTrainer
    from pathor1.rl.verl_config import build

    configure_verl_logging()
    started = time.monotonic()
    config = build(recipe, accelerator=accelerator)
    OmegaConf.resolve(config)

    def make_stream(start: Cursor | None) -> SampleStream:
        data = recipe.data
        return SampleStream(
            data.train,
            tasks=data.tasks,
            seed=recipe.seed,
            shuffle=data.shuffle,
            min_pixels=data.min_pixels,
            max_pixels=data.max_pixels,
            workers=data.workers,
            start=start,
        )

    def report(step: int, values: dict[str, float]) -> None:
        print(step_line(recipe, step, values, time.monotonic() - started), flush=True)

    print(f"{recipe.name}: starting the actor, vLLM and the agent on the {accelerator}", flush=True)
    tq.init(config.transfer_queue)
    try:
        trainer = RLTrainer(
            config,
            folder=folder,
            make_stream=make_stream,
            save_every=recipe.rl.save_every,
            keep_checkpoints=recipe.rl.keep_checkpoints,
            max_probability_difference=recipe.rl.max_probability_difference,
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


def step_line(recipe: Recipe, step: int, values: dict[str, float], elapsed: float) -> str:
    """One line that says where the run is: what it learns, whether it is healthy, how long a step takes."""
    return (
        f"step {step}/{recipe.rl.steps}  accuracy {values['reward/accuracy']:.3f}  format {values['reward/format']:.3f}  "
        f"informative {values['groups/informative']:.0f}/{values['groups/trained']:.0f}  "
        f"kl {values.get('actor/kl', 0.0):.4f}  entropy {values['actor/entropy']:.3f}  "
        f"probability difference {values['rollout/probability_difference_max']:.1e}  "
        f"{values['seconds/step']:.1f} s  [{elapsed:.0f} s]"
    )
