"""vLLM's server, which answers a whole question group by one request.

verl's takes a request for each answer: n times the pictures come out of Ray's object store, are hashed, and are looked
for in the prompt; and each token of each answer is told of, though nobody reads any but the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import ray
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens
from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_INT_ID, VLLM_LORA_NAME, VLLM_LORA_PATH
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm.lora.request import LoRARequest
from vllm.multimodal.cache import MultiModalProcessorSenderCache
from vllm.multimodal.inputs import MultiModalKwargsItems
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from pathor1 import interpreter

# What verl calls vLLM's reasons to stop.
STOPPED = {"stop": "completed", "length": "completed", "abort": "aborted"}


class QuestionGroupServer(vLLMHttpServer):
    """verl's server with one method more. What verl asks of it about weights and sleep holds for that as well."""

    async def launch_server(self, *args: Any, **options: Any) -> None:
        """Starts vLLM."""
        await super().launch_server(*args, **options)
        interpreter.settle()

    async def generate_group(
        self, prompt_ids: list[int], samplings: Sequence[Mapping[str, Any]], image_data: list[Any] | None
    ) -> AsyncIterator[list[tuple[int, TokenOutput]]]:
        """An answer to one prompt for each of `samplings`, with its place among them, as soon as it is there.

        prompt_ids: [P], with every picture expanded to its image tokens. samplings: vLLM's SamplingParams by name; a
        true `logprobs` asks for those of the tokens that are said, and without `max_tokens` an answer is as long as the
        recipe allows. Those that are under way when vLLM is given new weights come as far as they are, `aborted`.
        Whoever cancels this ends them all.
        """
        name = uuid4().hex
        rejected = await self._park_until_admitted(name)
        if rejected is not None:
            yield [(place, rejected) for place in range(len(samplings))]
            return
        waiting: dict[asyncio.Future[Any], int] = {}
        try:
            try:
                async for place, queue in self._submit(name, prompt_ids, samplings, image_data):
                    waiting[asyncio.ensure_future(queue.get())] = place
            finally:
                self._admitting -= 1  # what interrupts answers finds all of these
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                yield [(waiting.pop(each), self._output(each.result())) for each in done]
        except BaseException:
            for each in waiting:
                each.cancel()
            if not self.engine.errored:
                await self.engine.abort(name)
            raise

    async def _submit(
        self, name: str, prompt_ids: list[int], samplings: Sequence[Mapping[str, Any]], image_data: list[Any] | None
    ) -> AsyncIterator[tuple[int, Any]]:
        """Hands them to vLLM's engine, all by one name: each one's place, and the queue that its answer comes by."""
        tokens = qwen2_5_vl_dedup_image_tokens(prompt_ids, self.model_config.processor)
        prompt = {"prompt_token_ids": tokens, **({"multi_modal_data": {"image": image_data}} if image_data else {})}
        lora = await self._lora()
        renderer, rendered = self.engine.renderer, None
        for place, wanted in enumerate(samplings):
            # The first brings the pictures to the engine, which keeps them; the others only name them.
            rendered = named(rendered, renderer.mm_processor_cache)
            if rendered is None:
                (rendered,) = await renderer.render_cmpl_async([prompt])
            sampling = self._sampling(wanted, len(prompt_ids))
            yield place, await self.engine.add_request(name, rendered, sampling, lora_request=lora)

    def _sampling(self, wanted: Mapping[str, Any], prompt_tokens: int) -> SamplingParams:
        config = self.config
        defaults = {"max_tokens": config.response_length, "repetition_penalty": config.get("repetition_penalty", 1.0)}
        given = {**defaults, "ignore_eos": config.get("ignore_eos", False), **wanted}
        given["max_tokens"] = min(given["max_tokens"], config.max_model_len - prompt_tokens)
        given["logprobs"] = 0 if given.get("logprobs") else None
        # The agent makes the text, once; vLLM would make it anew for each token, and one of each log-probability.
        return SamplingParams(**given, detokenize=False, flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY)

    async def _lora(self) -> LoRARequest | None:
        """The adapter, where the weights that are learned are one, and vLLM has it already."""
        if not self.lora_as_adapter or VLLM_LORA_INT_ID not in await self.engine.list_loras():
            return None
        return LoRARequest(lora_name=VLLM_LORA_NAME, lora_int_id=VLLM_LORA_INT_ID, lora_path=VLLM_LORA_PATH)

    def _output(self, answer: RequestOutput) -> TokenOutput:
        fields = {"global_steps": self.global_steps}
        if not answer.outputs:
            return TokenOutput(token_ids=[], stop_reason="aborted", extra_fields=fields)
        (said,) = answer.outputs
        token_ids = list(said.token_ids)
        log_probs = None if said.logprobs is None else list(said.logprobs.logprobs)
        reason = STOPPED.get(said.finish_reason or "", said.finish_reason)
        return TokenOutput(token_ids=token_ids, log_probs=log_probs, stop_reason=reason, extra_fields=fields)


def named(rendered: Any, cache: Any) -> Any:
    """What vLLM has made of a prompt, as it would be made again now that the engine has its pictures.

    None where that is not known: nothing is made yet, or pictures are there and are not kept by vLLM's usual cache.
    """
    if rendered is None or "mm_kwargs" not in rendered:
        return rendered
    if not isinstance(cache, MultiModalProcessorSenderCache):
        return None
    without = {kind: [None] * len(items) for kind, items in rendered["mm_kwargs"].items()}
    return {**rendered, "mm_kwargs": MultiModalKwargsItems(without)}


class Replica(vLLMReplica):
    """verl's replica of vLLM, with a server that takes groups."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(QuestionGroupServer)
