"""An answer that does not come in time: vLLM itself stops generating it, and answers others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf
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
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    from pathor1.recipe import load
    from pathor1.rl.run import _environment

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    started = ray.remote(vLLMHttpServer).options(
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
    sampling = {"temperature": 1.0, "logprobs": True, "ignore_eos": True, "seed": 5, "detokenize": False}

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


def test_an_engine_is_found_once_for_a_group_and_given_back_once(config: Any, server: Any) -> None:
    from verl.workers.rollout.router import get_router_handle

    from pathor1.rl.client import TimedClient

    calls: list[str] = []

    class Counted(TimedClient):
        async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, Any]:
            calls.append(f"found for {request_id}")
            return await super()._acquire_server(request_id, **extra)

        def _release_server(self, server_id: str, request_id: str | None = None) -> None:
            calls.append(f"given back by {request_id}")
            super()._release_server(server_id, request_id)

    client = Counted(config, load_balancer_handle=get_router_handle({"one": server}))
    client.seconds = 300.0

    async def ask(name: str, seed: int) -> Any:
        sampling = {"temperature": 1.0, "logprobs": True, "max_tokens": 8, "seed": seed}
        return await client.generate(name, prompt_ids=[20, 21, 22], sampling_params=sampling)

    async def groups() -> Any:
        given_up = asyncio.ensure_future(ask("10", 1))
        await asyncio.sleep(0)  # it has begun to look for an engine
        given_up.cancel()
        return await asyncio.gather(*(ask(name, seed) for name in ("8", "9") for seed in (5, 6, 7)))

    answers = asyncio.run(groups())
    assert [answer.token_ids for answer in answers[:3]] == [answer.token_ids for answer in answers[3:]]
    assert sorted(calls) == [f"{what} {name}" for what in ("found for", "given back by") for name in ("10", "8", "9")]
