"""A question group's pictures: bytes in the queue and calls of the image processor, pathor1 beside verl's agent loop.

    .venv/bin/python benchmarks/image_bytes.py --size 448 --n 4 8 --out image_bytes.json

One vLLM engine, one actor and one TransferQueue, started as a run starts them, answer the same questions about the same
pictures for both: for pathor1's `QuestionGroupWorker`, and for verl's `AgentLoopWorkerTQ` with its single-turn agent
loop, which reads them through verl's `RLHFDataset` and has its answers scored by verl's reward worker (by a function
that returns 0). Nothing stands in for anything, but nothing is trained: a step's forward and backward passes, which
read from the queue, do not run. The model is `pathor1.model.tiny`, whose image processor is Qwen2.5-VL's own.

For each question group, averaged over `--groups` of them, when each has been answered once before:

stored      Bytes that the queue's storage units hold when the last answer is there, counted in their processes: of
            tensors, pictures and text the raw ones, of anything else what it takes pickled. `pixels` is the image
            processor's output; `pictures` is all that a picture is in, with verl's `prompt` and `raw_prompt`, each of
            which has it encoded and decoded; `all` is everything.
calls       Of the image processor in the agent's process: verl's runs it for the prompt, for the reward and for the
            queue. vLLM has one of its own: `vllm calls` are the pictures that its multimodal cache did not have.
sent        Bytes that Ray's object store took in meanwhile: the question on its way to the agent, pictures on theirs
            to vLLM and, in verl, to the reward worker. Ray sends what is smaller than 100 KB past its store.
seconds     Until the last answer was in the queue, over the number of groups.

Both loaders have the same prompt tokens and the same pixels, which is checked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

LOADERS = ("pathor1", "verl")
# Fields of the queue in which the image processor's output lies; what else has pictures in it is told by its type.
PIXELS = ("vision", "multi_modal_inputs")
WAIT_SECONDS = 600


def no_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
    """What verl's reward worker calls; what it returns is not what is measured."""
    return 0.0


def make_recipe(folder: Path, *, groups: int, size: int) -> Any:
    """The questions and the model, and a recipe for them."""
    from pathor1.data.rendered import render
    from pathor1.model import tiny
    from pathor1.recipe import Recipe

    train = render(folder / "data", seed=0, counts={"train": max(groups, 50)}, size=size)["train"]
    tiny.make(folder / "model", [train], seed=0)
    return Recipe.model_validate(
        {
            "name": "image-bytes",
            "runs_dir": str(folder),
            "model": {"path": str(folder / "model"), "dtype": "float32", "gradient_checkpointing": False},
            "data": {
                "train": [str(train)],
                "system_prompt": "none",
                "max_prompt_tokens": (size // 28) ** 2 + 128,
            },
            "rl": {
                "steps": 1,
                "prompts_per_step": groups,
                "prompts_per_update": groups,
                "max_response_tokens": 16,
                "reward": {"overlong_cache_tokens": 8},
            },
            "rollout": {"enforce_eager": True},
            "cluster": {"accelerators_per_node": 1},
            "verl": {"actor_rollout_ref.rollout.disable_log_stats": False},
        }
    )


def questions_of_pathor1(recipe: Any) -> Any:
    """The batch that `RLTrainer` would make."""
    from tensordict import NonTensorData, NonTensorStack, TensorDict

    from pathor1.samples import read

    count = recipe.rl.prompts_per_step
    samples = list(read(Path(recipe.data.train[0])))[:count]
    return TensorDict(
        {
            "uid": NonTensorStack(*(str(index) for index in range(count))),
            "index": NonTensorStack(*range(count)),
            "sample": NonTensorStack(*(NonTensorData(sample) for sample in samples)),
            "global_steps": NonTensorData(0),
        },
        batch_size=count,
    )


def questions_of_verl(recipe: Any, config: Any) -> Any:
    """The batch that verl's trainer would make, of the same questions in verl's form."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoProcessor
    from verl.utils import tensordict_utils
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    from pathor1.prompts import question_text
    from pathor1.samples import read

    train, count = Path(recipe.data.train[0]), recipe.rl.prompts_per_step
    rows = [
        {
            "prompt": [{"role": "user", "content": "<image>" + question_text(sample)}],
            "images": [{"bytes": data} for data in sample.images],
            "data_source": sample.source,
            "reward_model": {"ground_truth": sample.answer},
            "extra_info": {"index": index},
        }
        for index, sample in enumerate(list(read(train))[:count])
    ]
    path = train.with_suffix(".verl.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    processor: Any = AutoProcessor.from_pretrained(recipe.model.path)
    dataset = RLHFDataset(str(path), processor.tokenizer, config.data, processor)
    batch = collate_fn([dataset[index] for index in range(count)])
    batch["uid"] = np.array([str(index) for index in range(count)], dtype=object)
    questions = tensordict_utils.get_tensordict(batch)
    tensordict_utils.assign_non_tensor_data(questions, "global_steps", 0)
    return questions


def start_engine(config: Any) -> Any:
    """pathor1's trainer as far as vLLM and the actor with the same weights: without a stream and checkpoints."""
    from verl.trainer.ppo.v1 import PPOTrainerSync

    from pathor1.rl.modes import Sync

    class Engine(Sync):
        def __init__(self, config: Any) -> None:
            PPOTrainerSync.__init__(self, config)

        def _build_replay_buffer(self) -> None:
            """There is nothing to sample from."""

        def _load_checkpoint(self) -> None:
            self.global_steps = 0

    engine = Engine(config)
    engine.init()
    return engine


def count_calls(worker: Any) -> None:
    """Runs in an agent's process: its image processor counts its calls from here on."""
    processor = worker.processor.image_processor
    process = processor.preprocess
    worker.processor_calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        worker.processor_calls += 1
        return process(*args, **kwargs)

    processor.preprocess = counted


def stored(unit: Any) -> tuple[dict[str, int], list[str]]:
    """Runs in a storage unit's process: bytes of "pixels", "other pictures" and "rest", and digests of all different
    pixels and prompts."""
    counts, digests = Counter[str](), set[str]()
    for field, entries in unit.storage_data.field_data.items():
        for entry in entries.values():
            for is_picture, data in _leaves(entry):
                counts["pixels" if field in PIXELS else "other pictures" if is_picture else "rest"] += len(data)
            told = entry if field == "prompts" else entry.get("pixel_values") if field in PIXELS else None
            if told is not None:
                digests.add(hashlib.sha256(told.numpy().tobytes()).hexdigest())
    return dict(counts), sorted(digests)


def _leaves(value: Any) -> Iterator[tuple[bool, bytes]]:
    """What a value of the queue consists of: whether it is a picture, encoded or decoded, and its bytes."""
    import torch
    from PIL import Image

    if isinstance(value, torch.Tensor):
        yield False, value.numpy().tobytes()
    elif isinstance(value, Image.Image):
        yield True, value.tobytes()
    elif isinstance(value, bytes):
        yield True, value
    elif isinstance(value, str):
        yield False, value.encode()
    elif isinstance(value, dict):
        for part in (*value.keys(), *value.values()):
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield False, pickle.dumps(value)


def object_store_bytes() -> int:
    """All that Ray's object store has ever taken in; Ray tells it to itself alone (`ray memory --stats-only`)."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address))
    return int(reply.store_stats.cumulative_created_bytes)


def vllm_counters(address: str) -> Counter[str]:
    """vLLM's own counters of its caches: of prompt tokens and of pictures."""
    with urllib.request.urlopen(f"http://{address}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    counts = Counter[str]()
    for line in lines:
        name, _, rest = line.partition("{")
        if name.startswith(("vllm:prefix_cache_", "vllm:mm_cache_")) and name.endswith("_total"):
            counts[name.removeprefix("vllm:").removesuffix("_total")] += int(float(rest.rsplit(" ", 1)[-1]))
    return counts


def measure(engine: Any, manager: Any, questions: Any) -> dict[str, Any]:
    """Answers the questions twice and says what the second time took, for one group; empties the queue."""
    import transfer_queue as tq

    workers, engine.agent_loop_manager = manager.agent_loop_workers, manager
    (address,), (server,) = engine.llm_server_manager.server_addresses, engine.llm_server_manager.server_handles
    answer(engine, questions)  # the first time, much of the time is a process's own start
    empty(tq)
    ray.get(server.clear_kv_cache.remote())
    ray.get([worker.__ray_call__.remote(count_calls) for worker in workers])
    sent, counters, started = object_store_bytes(), vllm_counters(address), time.monotonic()
    answer(engine, questions)
    seconds = time.monotonic() - started
    sent, counters = object_store_bytes() - sent, vllm_counters(address) - counters
    calls = ray.get([worker.__ray_call__.remote(lambda self: self.processor_calls) for worker in workers])
    units = [ray.get_actor(name) for name in ray.util.list_named_actors() if name.startswith("TransferQueueStorage")]
    found = ray.get([unit.__ray_call__.remote(stored) for unit in units])
    empty(tq)
    held = sum((Counter(counts) for counts, _ in found), Counter[str]())
    groups = len(questions)
    return {
        "pixel_bytes": held["pixels"] // groups,
        "picture_bytes": (held["pixels"] + held["other pictures"]) // groups,
        "all_bytes": held.total() // groups,
        "calls": sum(calls) / groups,
        "vllm_calls": (counters["mm_cache_queries"] - counters["mm_cache_hits"]) / groups,
        "vllm_prefix_hits": round(counters["prefix_cache_hits"] / counters["prefix_cache_queries"], 3),
        "sent_bytes": sent // groups,
        "seconds": round(seconds / groups, 2),
        "digests": sorted({digest for _, digests in found for digest in digests}),
    }


def answer(engine: Any, questions: Any) -> None:
    """Hands the questions to the agents, as the trainers do, and waits until all are answered."""
    import transfer_queue as tq

    from pathor1.rl.agent import QuestionGroupManager

    manager = engine.agent_loop_manager
    if isinstance(manager, QuestionGroupManager):
        manager.generate_sequences(questions.clone())
        groups: list[Any] = []
        while len(groups) < len(questions):
            asked = [worker.finished.remote() for worker in manager.agent_loop_workers]
            groups += [group for some in ray.get(asked, timeout=WAIT_SECONDS) for group in some]
        if failed := [group.error for group in groups if group.error is not None]:
            raise SystemExit(f"the questions were not answered: {failed[0]}")
        return
    engine._submit_batch_to_rollout(questions.clone())
    deadline = time.monotonic() + WAIT_SECONDS
    done = Counter[str]()
    while done["finished"] < len(questions):
        time.sleep(0.02)
        done = Counter(tag["status"] for key, tag in tq.kv_list("train")["train"].items() if "_" not in key)
        if done["failure"] or time.monotonic() > deadline:
            raise SystemExit(f"the questions were not answered: {dict(done)}")


def empty(queue: Any) -> None:
    """Removes all that is in the queue."""
    for partition, entries in queue.kv_list().items():
        if entries:
            queue.kv_clear(keys=list(entries), partition_id=partition)


def run(recipe: Any, counts: list[int]) -> list[dict[str, Any]]:
    """All measurements, with one engine."""
    import transfer_queue as tq
    from omegaconf import OmegaConf
    from verl.experimental.reward_loop import RewardLoopManager
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ

    from pathor1.ray_cluster import choose_accelerator, ray_cluster
    from pathor1.rl.agent import QuestionGroupManager
    from pathor1.rl.run import _environment, _spare_cpus
    from pathor1.rl.verl_config import build

    accelerator = choose_accelerator(recipe)
    results: list[dict[str, Any]] = []
    with ray_cluster(_environment(recipe, accelerator), log_to_driver=False):
        config = build(recipe, accelerator=accelerator)
        OmegaConf.resolve(config)
        if accelerator == "cpu":
            _spare_cpus()
        tq.init(config.transfer_queue)
        engine = start_engine(config)
        of_verl = config.copy()
        of_verl.reward.num_workers = 1
        of_verl.reward.custom_reward_function = {"path": str(Path(__file__).resolve()), "name": "no_reward"}
        rewards = RewardLoopManager(of_verl).reward_loop_worker_handles
        for count in counts:
            for loader in LOADERS:
                ours = loader == "pathor1"
                setting = (config if ours else of_verl).copy()
                setting.actor_rollout_ref.rollout.n = count
                manager = (QuestionGroupManager if ours else AgentLoopManagerTQ).create(
                    config=setting,
                    llm_client=engine.get_llm_client() if ours else engine.llm_server_manager.get_client(),
                    teacher_client=None,
                    reward_loop_worker_handles=[] if ours else rewards,
                )
                questions = questions_of_pathor1(recipe) if ours else questions_of_verl(recipe, setting)
                results.append({"loader": loader, "n": count, **measure(engine, manager, questions)})
                for worker in manager.agent_loop_workers:
                    ray.kill(worker)
                print(row(results[-1]), flush=True)
        tq.close()
    return results


def row(result: dict[str, Any]) -> str:
    """One line of the table."""
    mega = {name: result[f"{name}_bytes"] / 1e6 for name in ("pixel", "picture", "all", "sent")}
    return (
        f"{result['loader']:<8} n = {result['n']:<2}  stored: pixels {mega['pixel']:7.2f} MB, "
        f"pictures {mega['picture']:7.2f} MB, all {mega['all']:7.2f} MB   calls {result['calls']:4.1f}   "
        f"vllm calls {result['vllm_calls']:3.1f}   sent {mega['sent']:7.2f} MB   {result['seconds']:5.2f} s"
    )


def main() -> None:
    """Measures both loaders at every n and prints what one group takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[4, 8], help="rollouts of a group")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--size", type=int, default=448, help="of the pictures, in pixels a side")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(Path(folder), groups=arguments.groups, size=arguments.size)
        results = run(recipe, arguments.n)
    digests = [result.pop("digests") for result in results]
    if any(found != digests[0] for found in digests):
        raise SystemExit("the loaders did not have the same pixels and prompts")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
