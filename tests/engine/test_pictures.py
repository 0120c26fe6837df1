"""A group's pictures lie in the queue once and go to vLLM once, however many rollouts it has, and go with the group."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from processes import wait_until
from small import Small

pytestmark = pytest.mark.timeout(600)
# Of the queue's storage: as many as a run on three nodes has.
UNITS = 3


@pytest.fixture(scope="module")
def config(small: Small) -> Any:
    from pathor1.recipe import load
    from pathor1.rl.verl_config import build

    made = build(load(small.recipe, ["data.max_prompt_tokens=512"]), accelerator="cpu")
    OmegaConf.resolve(made)
    return made


@pytest.fixture(scope="module")
def queue(config: Any) -> Iterator[Any]:
    """verl's real queue, as a run has it."""
    import ray
    import transfer_queue as tq

    from pathor1.rl.run import _spare_cpus

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    _spare_cpus()
    storage = {"num_data_storage_units": UNITS}
    tq.init(OmegaConf.merge(config.transfer_queue, {"backend": {"SimpleStorage": storage}}))
    yield tq
    tq.close()
    ray.shutdown()


def vision(seed: int, patches: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.rand((patches, 1176), generator=generator),
        "image_grid_thw": torch.tensor([[1, patches // 4, 4]]),
    }


def test_rollouts_share_what_is_stored_once(queue: Any) -> None:
    from pathor1.rl import pictures

    sets = {"0-1": vision(1, 16), "0-2": vision(2, 64)}
    for group, made in sets.items():
        assert asyncio.run(pictures.store(group, made)) == {"group": group}
    assert set(queue.kv_list(pictures.PARTITION)[pictures.PARTITION]) == set(sets)
    found = pictures.fetch(["0-2", "0-1", "0-2", "0-2"])
    assert list(found) == ["0-2", "0-1"]
    for group, made in sets.items():
        for name, tensor in made.items():
            assert torch.equal(found[group][name], tensor)


def test_the_pictures_of_groups_that_are_gone_go(queue: Any) -> None:
    from pathor1.rl import pictures

    for group in ("1-1", "1-2", "1-3"):
        asyncio.run(pictures.store(group, vision(3, 16)))
    pictures.clear_all_but(["1-2", "9-9"])
    assert set(queue.kv_list(pictures.PARTITION)[pictures.PARTITION]) == {"1-2"}
    pictures.clear_all_but([])
    assert not queue.kv_list(pictures.PARTITION).get(pictures.PARTITION)


def test_a_group_without_pictures_stores_nothing(queue: Any) -> None:
    from pathor1.rl import pictures

    assert asyncio.run(pictures.store("2-1", {})) == {}
    assert pictures.fetch([]) == {}


def one_rollout(tokens: int) -> tuple[Any, Any]:
    """A prompt of three tokens, and an answer to it."""
    from pathor1.rl.rollouts import Prompt, Rollout
    from pathor1.rl.scoring import RolloutScore
    from pathor1.samples import Sample

    sample = Sample(id="a", source="s", task="mcq", question="?", options=("x", "y"), answer="A")
    prompt = Prompt(
        sample=sample,
        images=None,
        token_ids=[1, 2, 3],
        position_ids=torch.zeros((4, 3), dtype=torch.int64),
        carried={"group": "3"},
    )
    score = RolloutScore(format=1.0, accuracy=0.0, length=0.0, total=1.0, parsed="B", reason="", truncated=False)
    rollout = Rollout(
        token_ids=[7 + place for place in range(tokens)],
        log_probs=[-0.1 * (1 + place) for place in range(tokens)],
        text="t",
        score=score,
        parts=((0, tokens),),
        stop_reason="completed",
    )
    return prompt, rollout


@pytest.mark.parametrize("lengths", [(2, 5, 3, 4), (3, 3, 3, 3), (2,)])
def test_a_group_lies_whole_in_one_storage_unit_whatever_its_lengths(queue: Any, lengths: tuple[int, ...]) -> None:
    from transfer_queue import interface
    from verl.utils.tensordict_utils import unwrap_non_tensor_data

    from pathor1.rl.rollouts import queue_batch, queue_fields, queue_tag

    client: Any = interface._maybe_create_tq_client()
    made = [one_rollout(tokens) for tokens in lengths]
    rows = [queue_fields("3", prompt, rollout, mask_truncated=False) for prompt, rollout in made]
    units: list[str] = []
    # The queue keeps an index for the first entry of all.
    queue.kv_batch_put(keys=["first"], fields=queue_batch(rows[:1]), tags=[{}], partition_id="train")
    for group in range(2 * UNITS):
        keys = [f"{group}_{index}_0" for index in range(len(lengths))]
        tags = [queue_tag(1, prompt, rollout) for prompt, rollout in made]
        queue.kv_batch_put(keys=keys, fields=queue_batch(rows), tags=tags, partition_id="train")
        found = client._run_coroutine(client.async_kv_retrieve_meta(keys=keys, partition_id="train", create=False))
        (unit,) = client.storage_manager._group_by_hash(found.global_indexes)
        units.append(unit)
        data = queue.kv_batch_get(keys=keys, partition_id="train")
        assert set(data.keys()) == set(rows[0])
        for index, row in enumerate(rows):
            for name, wanted in row.items():
                got = data[name].unbind()[index] if isinstance(wanted, torch.Tensor) else data[name][index]
                got = unwrap_non_tensor_data(got)
                if isinstance(wanted, torch.Tensor):
                    assert torch.equal(got, wanted), name
                    assert got.dtype == wanted.dtype
                else:
                    assert got == wanted, name
    assert units[:UNITS] == units[UNITS:], "in turns"
    assert len(set(units)) == UNITS
    queue.kv_clear(keys=list(queue.kv_list("train")["train"]), partition_id="train")


def test_a_rollout_carries_the_groups_name_and_no_pixel() -> None:
    from pathor1.rl.rollouts import queue_fields

    prompt, rollout = one_rollout(2)
    score = rollout.score
    fields = queue_fields("3", prompt, rollout, mask_truncated=True)
    assert fields["multi_modal_inputs"] == {"group": "3"}
    assert fields["response_mask"].tolist() == fields["loss_mask"].tolist() == [1, 1]
    assert fields["rm_scores"].tolist() == [0.0, 1.0]
    cut = replace(rollout, score=replace(score, truncated=True))
    for masks, mask in ((True, [0, 0]), (False, [1, 1])):
        fields = queue_fields("3", prompt, cut, mask_truncated=masks)
        assert fields["response_mask"].tolist() == fields["loss_mask"].tolist() == mask
        assert fields["rm_scores"].tolist() == [0.0, 1.0], "it counts in its group all the same"
    stored = sum(value.nbytes for value in fields.values() if isinstance(value, torch.Tensor))
    assert stored < 1000, "tokens, masks and positions of five tokens, where the picture alone is 75,264 bytes"


def test_what_waits_for_the_next_step_goes_through_a_checkpoint(queue: Any, small: Small, tmp_path: Path) -> None:
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    from pathor1.rl import carried, pictures
    from pathor1.rl.groups import Group, Pool, Rules
    from pathor1.samples import read

    rules = Rules(batch=4, dynamic=True, budget=12, min_groups=1, max_carry_steps=2)
    keys, made = ("11_0_0", "11_1_0"), vision(5, 16)
    answers = [torch.tensor([3, 4, 5]), torch.tensor([6])]
    for key, answer in zip(keys, answers, strict=True):
        row = {"uid": "11", "responses": answer, "multi_modal_inputs": asyncio.run(pictures.store("11", made))}
        fields = list_of_dict_to_tensordict([row])
        queue.kv_batch_put(keys=[key], fields=fields, tags=[{"global_steps": 3}], partition_id="train")
    group = Group(number=11, sample="a", step=3, accuracies=(1.0, 0.0), keys=keys, tags=({"global_steps": 3},) * 2)
    samples = dict(zip((14, 12), read(small.train), strict=False))
    for pool, asked in ((Pool(rules, waiting=[group], share=0.25), samples), (Pool(rules, share=0.5), {})):
        carried.save(tmp_path, pool, asked)
        queue.kv_clear(keys=list(keys), partition_id="train")
        pictures.clear_all_but([])
        again = Pool(rules)
        assert list(carried.load(tmp_path, again).items()) == sorted(asked.items())
        assert (again.waiting, again.share) == (pool.waiting, pool.share)
        if pool.waiting:
            data = queue.kv_batch_get(keys=list(keys), partition_id="train", select_fields=["responses"])
            assert [each.tolist() for each in data["responses"].unbind()] == [each.tolist() for each in answers]
            assert torch.equal(pictures.fetch(["11"])["11"]["pixel_values"], made["pixel_values"])
    again.begin(4)
    assert again.wanted() == 8, "as many as can be expected to hold four with a difference"


def object_store() -> Any:
    """What Ray's object store holds and has ever taken in, as `ray memory --stats-only` tells some of it."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    return get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats


def start_engine() -> Any:
    """An actor in the place of vLLM's server."""
    import ray

    class Engine:
        """Notes what it is asked, and that it is to stop, and answers when it is told to."""

        def __init__(self) -> None:
            from verl.workers.rollout.replica import TokenOutput  # which takes seconds

            self.output = TokenOutput(token_ids=[20, 21], log_probs=[-0.1, -0.2], extra_fields={"global_steps": 0})
            self.asked: list[list[str]] = []
            self.seeds: list[int] = []
            self.stopped = 0
            self.told = asyncio.Event()

        async def generate_group(
            self, prompt_ids: list[int], samplings: list[dict[str, Any]], image_data: list[Image.Image]
        ) -> Any:
            self.asked.append([hashlib.sha256(picture.tobytes()).hexdigest() for picture in image_data])
            self.seeds += [sampling["seed"] for sampling in samplings]
            try:
                await self.told.wait()
            except asyncio.CancelledError:
                self.stopped += 1
                raise
            for place in range(len(samplings)):
                yield [(place, self.output)]

        async def seen(self) -> list[list[str]]:
            return self.asked

        async def seen_seeds(self) -> list[int]:
            return sorted(self.seeds)

        async def seen_stops(self) -> int:
            return self.stopped

        async def answer(self) -> None:
            self.told.set()

    return ray.remote(Engine).remote()


def one_question(number: str, picture: bytes) -> Any:
    from tensordict import NonTensorData, NonTensorStack, TensorDict

    from pathor1.samples import Sample

    question: Any = {"task": "mcq", "question": "Which?", "options": ("x", "y"), "answer": "A"}
    sample = Sample(id="a", source="s", **question, images=(picture,))
    return TensorDict(
        {
            "uid": NonTensorStack(number),
            "index": NonTensorStack(0),
            "sample": NonTensorStack(NonTensorData(sample)),
            "global_steps": NonTensorData(1),
        },
        batch_size=1,
    )


def agents_of(config: Any, engines: dict[str, Any]) -> Any:
    from verl.workers.rollout.router import get_router_handle

    from pathor1.rl.agent import QuestionGroupManager
    from pathor1.rl.client import TimedClient

    return QuestionGroupManager.create(
        config=config,
        llm_client=TimedClient(config, load_balancer_handle=get_router_handle(engines)),
        teacher_client=None,
        reward_loop_worker_handles=[],
    )


def test_a_groups_pictures_go_to_vllm_once_and_are_kept_in_one_form(queue: Any, config: Any) -> None:
    import ray

    from pathor1.rl import pictures
    from pathor1.samples import Sample

    def encoded(worker: Any) -> int:
        gc.collect()
        return sum(len(found.images) for found in gc.get_objects() if isinstance(found, Sample))

    def pixels(worker: Any) -> int:
        gc.collect()
        tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
        return sum(found.nbytes for found in tensors if found.shape[-1:] == (1176,))  # the processor's patches

    picture = Image.fromarray(np.full((448, 448, 3), 200, dtype=np.uint8))
    decoded, buffer = picture.tobytes(), io.BytesIO()
    picture.save(buffer, "PNG")
    engines = {name: start_engine() for name in ("one", "two")}

    def seen() -> list[list[str]]:
        """The pictures of each request to each engine, the busier engine last."""
        return sorted((ray.get(engine.seen.remote()) for engine in engines.values()), key=len)

    agents = agents_of(config, engines)
    (worker,) = agents.agent_loop_workers
    ray.get(worker.__ray_ready__.remote())
    before = object_store()
    agents.generate_sequences(one_question("7", buffer.getvalue()))
    wait_until(lambda: sum(map(len, seen())) > 0, 60, "the request")
    assert seen() == [[], [[hashlib.sha256(decoded).hexdigest()]]], "one for all four answers"
    taken_in = object_store().cumulative_created_bytes - before.cumulative_created_bytes
    assert len(decoded) <= taken_in < 2 * len(decoded), "one picture, not one for each of four rollouts"
    # What training needs of the picture is in the queue before the first answer is there, and not in the agent.
    assert ray.get(worker.__ray_call__.remote(encoded)) == 0
    assert ray.get(worker.__ray_call__.remote(pixels)) == 0
    assert pictures.fetch(["7"])["7"]["pixel_values"].shape == (1024, 1176)
    ray.get([engine.answer.remote() for engine in engines.values()])
    (group,) = ray.get(worker.finished.remote(), timeout=60)
    assert (group.number, group.sample, group.step, group.error) == (7, "a", 1, None)
    assert group.keys == tuple(f"7_{index}_0" for index in range(4))
    wait_until(lambda: object_store().num_local_objects <= before.num_local_objects, 60, "the picture gone")
    assert set(queue.kv_list(pictures.PARTITION)[pictures.PARTITION]) == {"7"}
    assert set(group.keys) == set(queue.kv_list("train")["train"])


def test_an_answer_that_does_not_come_in_time_is_stopped_and_its_group_alone_is_dropped(
    queue: Any, config: Any
) -> None:
    import ray

    from pathor1.rl.rollouts import rollout_seed

    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), "white").save(buffer, "PNG")
    engine = start_engine()
    assert ray.get(engine.seen.remote(), timeout=300) == []  # it is there: the limit is for answers
    impatient = OmegaConf.merge(config, {"pathor1": {"rollout_timeout": 1.0}})
    agents = agents_of(impatient, {"one": engine})
    (worker,) = agents.agent_loop_workers
    agents.generate_sequences(one_question("11", buffer.getvalue()))
    (group,) = ray.get(worker.finished.remote(), timeout=60)
    assert (group.number, group.keys, group.accuracies) == (11, (), ())
    assert group.error == "NoAnswer: vLLM has not answered within rollout.timeout = 1 s"
    wait_until(lambda: ray.get(engine.seen_stops.remote()) == 1, 30, "the request stopped")
    ray.get(engine.answer.remote())
    agents.generate_sequences(one_question("12", buffer.getvalue()))
    (group,) = ray.get(worker.finished.remote(), timeout=60)
    assert (group.number, len(group.keys), group.error) == (12, 4, None)
    assert ray.get(engine.seen_stops.remote()) == 1
    # Every answer has a seed of its own, so that it does not matter which engine gives it.
    seeds = {rollout_seed(0, number, index) for number in (11, 12) for index in range(4)}
    assert len(seeds) == 8
    assert ray.get(engine.seen_seeds.remote()) == sorted(seeds)
