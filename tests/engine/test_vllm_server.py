"""vLLM's server and who asks it: groups by one request; answers that are late, or that nobody waits for any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from processes import wait_until
from small import Small

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def config(small: Small) -> Any:
    """Answers so long that none is finished before somebody is tired of waiting."""
    from pathor1.recipe import load
    from pathor1.rl.verl_config import build

    settings = ["rl.max_response_tokens=4000", "rollout.timeout=5"]
    made = build(load(small.recipe, settings), accelerator="cpu")
    OmegaConf.resolve(made)
    return made


@pytest.fixture(scope="module")
def server(config: Any, small: Small) -> Iterator[Any]:
    """vLLM with its engine process, as verl starts it."""
    import ray
    from verl.workers.rollout.replica import RolloutMode

    from pathor1.recipe import load
    from pathor1.rl.run import _environment
    from pathor1.rl.vllm_server import QuestionGroupServer

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    started = ray.remote(QuestionGroupServer).options(
        max_concurrency=100, runtime_env={"env_vars": _environment(load(small.recipe), "cpu")}
    )
    one = started.remote(
        config=config.actor_rollout_ref.rollout,
        model_config=config.actor_rollout_ref.model,
        rollout_mode=RolloutMode.HYBRID,
        workers=[],
        replica_rank=0,
        node_rank=0,
        gpus_per_node=1,
        nnodes=1,
        cuda_visible_devices="0",
    )
    ray.get(one.launch_server.remote())
    yield one
    ray.shutdown()


def test_vllm_stops_generating_what_nobody_waits_for(config: Any, server: Any) -> None:
    import ray
    from verl.workers.rollout.router import get_router_handle

    from pathor1.rl.client import NoAnswer, TimedClient

    client = TimedClient(config, load_balancer_handle=get_router_handle({"one": server}))

    def under_way() -> int:
        return ray.get(server.__ray_call__.remote(lambda self: len(self.engine.output_processor.request_states)))

    async def ask(**sampling: Any) -> Any:
        sampling = {"temperature": 1.0, "logprobs": True, **sampling}
        return await client.generate("7", prompt_ids=[20, 21, 22], sampling_params=sampling)

    async def give_up() -> Any:
        late = asyncio.ensure_future(ask(ignore_eos=True))
        await asyncio.to_thread(wait_until, lambda: under_way() == 1, 4, "the request in vLLM")
        return await late

    # The engine's first answer takes long, whatever it is.
    limit, client.seconds = client.seconds, 300.0
    first = asyncio.run(ask(max_tokens=8, seed=5))
    client.seconds = limit
    with pytest.raises(NoAnswer, match=r"^vLLM has not answered within rollout.timeout = 5 s$"):
        asyncio.run(give_up())
    wait_until(lambda: under_way() == 0, 30, "no request left in vLLM")
    second = asyncio.run(ask(max_tokens=8, seed=5))
    assert second.token_ids == first.token_ids, "of one seed"
    assert asyncio.run(ask(max_tokens=8, seed=6)).token_ids != first.token_ids


def test_an_interrupted_answer_goes_on_where_it_was_with_the_weights_that_are_there_then(
    config: Any, server: Any
) -> None:
    import ray
    from verl.workers.rollout.router import get_router_handle

    from pathor1.rl.client import PARTS, InterruptedClient, TimedClient, going_on

    most, prompt = 400, [20, 21, 22]
    shorter = OmegaConf.merge(config, {"actor_rollout_ref": {"rollout": {"response_length": most}}})
    client = InterruptedClient(shorter, load_balancer_handle=get_router_handle({"one": server}))
    client.seconds = 300.0
    sampling = {"temperature": 1.0, "logprobs": True, "ignore_eos": True, "seed": 5}

    def said() -> int:
        def look(self: Any) -> int:
            states = self.engine.output_processor.request_states.values()
            return max((state.detokenizer.num_output_tokens() for state in states), default=0)

        return ray.get(server.__ray_call__.remote(look))

    def interrupt() -> None:
        while said() <= 5:
            time.sleep(0.001)
        ray.get(server.abort_all_requests.remote())
        ray.get(server.set_global_steps.remote(8))
        ray.get(server.resume_generation.remote())

    async def answer() -> Any:
        whole = asyncio.ensure_future(client.generate("7", prompt_ids=prompt, sampling_params=sampling))
        await asyncio.to_thread(interrupt)
        return await whole

    ray.get(server.set_global_steps.remote(7))
    whole = asyncio.run(answer())
    (first, begun), (second, rest) = whole.extra_fields[PARTS]
    assert (first, second, begun + rest) == (7, 8, most)
    assert begun > 5
    assert len(whole.token_ids) == len(whole.log_probs) == most
    # What came behind the interruption is what vLLM says behind the beginning.
    again = TimedClient(shorter, load_balancer_handle=get_router_handle({"one": server}))
    again.seconds = 300.0
    asked = again.generate(
        "8", prompt_ids=prompt + whole.token_ids[:begun], sampling_params=going_on(sampling, begun, most)
    )
    alone = asyncio.run(asked)
    assert alone.token_ids == whole.token_ids[begun:]
    assert alone.log_probs == pytest.approx(whole.log_probs[begun:], abs=1e-4)


def test_an_engine_is_found_and_given_back_for_each_group(config: Any, server: Any) -> None:
    from verl.workers.rollout.router import get_router_handle

    from pathor1.rl.client import TimedClient

    calls: list[str] = []

    class Counted(TimedClient):
        looks: asyncio.Event

        async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, Any]:
            calls.append(f"found for {request_id}")
            self.looks.set()
            return await super()._acquire_server(request_id, **extra)

        def _release_server(self, server_id: str, request_id: str | None = None) -> None:
            calls.append(f"given back by {request_id}")
            super()._release_server(server_id, request_id)

    client = Counted(config, load_balancer_handle=get_router_handle({"one": server}))
    client.seconds, client.looks = 300.0, asyncio.Event()
    samplings = [{"temperature": 1.0, "logprobs": True, "max_tokens": 8, "seed": seed} for seed in (5, 6, 7)]

    async def ask(name: str) -> list[list[int]]:
        async with client.ask(name, prompt_ids=[20, 21, 22], samplings=samplings) as answers:
            return [(await answer).token_ids for answer in answers]

    async def groups() -> Any:
        given_up = asyncio.ensure_future(ask("10"))
        await client.looks.wait()
        given_up.cancel()
        return await asyncio.gather(ask("8"), ask("9"))

    one, other = asyncio.run(groups())
    assert one == other
    assert len({tuple(tokens) for tokens in one}) == 3
    assert sorted(calls) == [f"{what} {name}" for what in ("found for", "given back by") for name in ("10", "8", "9")]


def test_a_group_is_answered_as_its_answers_are_one_by_one_with_one_look_at_its_picture(
    config: Any, server: Any, small: Small
) -> None:
    import ray
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(small.model)
    pictures = [Image.fromarray(np.full((56, 56, 3), shade, dtype=np.uint8)) for shade in (40, 200)]
    marks = "<|vision_start|><|image_pad|><|vision_end|>"
    samplings = [{"temperature": 1.0, "logprobs": True, "max_tokens": 12, "seed": seed} for seed in (5, 6, 7, 8)]

    def looks() -> int:
        stats = server.__ray_call__.remote(lambda self: self.engine.renderer.mm_processor_cache.make_stats())
        return ray.get(stats).total

    async def group(prompt: list[int], picture: Any) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        async for some in server.generate_group.remote(prompt, samplings, [picture]):
            answers.update(await some)
        return answers

    async def one_by_one(prompt: list[int], picture: Any) -> list[Any]:
        calls = [
            server.generate.remote(prompt, dict(sampling), f"{picture.getpixel((0, 0))}-{place}", image_data=[picture])
            for place, sampling in enumerate(samplings)
        ]
        return await asyncio.gather(*calls)

    for picture in pictures:
        prompt = processor(text=[f"{marks}Which?"], images=[picture])["input_ids"][0]
        before = looks()
        found = asyncio.run(group(prompt, picture))
        assert looks() - before == 1
        expected = asyncio.run(one_by_one(prompt, picture))
        assert sorted(found) == [0, 1, 2, 3]
        for place, single in enumerate(expected):
            assert found[place].token_ids == single.token_ids
            assert found[place].log_probs == pytest.approx(single.log_probs, abs=1e-4)
            assert found[place].stop_reason == single.stop_reason == "completed"
            assert found[place].extra_fields["global_steps"] == single.extra_fields["global_steps"]
    other = asyncio.run(group(prompt, pictures[0]))
    assert [other[place].log_probs for place in range(4)] != [single.log_probs for single in expected], "it is seen"


def test_short_answers_do_not_wait_for_long_ones_and_a_closed_gate_sends_all_back(config: Any, server: Any) -> None:
    import ray

    lengths = [4, 400, 4]
    samplings = [{"max_tokens": length, "ignore_eos": True, "seed": 5} for length in lengths]

    async def ask() -> list[tuple[int, int, str]]:
        """Place, tokens and why it stopped, in the order in which they come."""
        asked = server.generate_group.remote([20, 21, 22], samplings, None)
        items = [await some async for some in asked]
        return [(place, len(said.token_ids), said.stop_reason) for item in items for place, said in item]

    whole = [(0, 4, "completed"), (2, 4, "completed"), (1, 400, "completed")]
    assert asyncio.run(ask()) == whole
    ray.get(server.abort_all_requests.remote(reject_request=True))
    assert asyncio.run(ask()) == [(place, 0, "aborted") for place in range(3)]
    ray.get(server.resume_generation.remote())
    assert asyncio.run(ask()) == whole


def test_who_leaves_a_group_ends_all_of_it(config: Any, server: Any) -> None:
    import ray
    from verl.workers.rollout.router import get_router_handle

    from pathor1.rl.client import TimedClient

    client = TimedClient(config, load_balancer_handle=get_router_handle({"one": server}))
    client.seconds = 300.0
    samplings = [{"max_tokens": length, "ignore_eos": True, "seed": 5} for length in (4, 4000, 4000)]

    def under_way() -> int:
        return ray.get(server.__ray_call__.remote(lambda self: len(self.engine.output_processor.request_states)))

    async def leave() -> int:
        async with client.ask("11", prompt_ids=[20, 21, 22], samplings=samplings) as answers:
            first = await answers[0]
            assert await asyncio.to_thread(under_way) == 2
            return len(first.token_ids)

    assert asyncio.run(leave()) == 4
    wait_until(lambda: under_way() == 0, 30, "no request left in vLLM")
