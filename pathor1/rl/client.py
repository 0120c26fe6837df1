"""Asks vLLM for the answers of a question group, and does not wait for them longer than the recipe says.

verl's own client asks for each answer by itself, waits without end, and goes on generating for who has given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import ray
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

# The entry of `TokenOutput.extra_fields` that says which weights have said what: [(version, tokens), ...] in order.
PARTS = "parts"
# Seconds before an engine that takes no requests is asked again.
PAUSE = 1.0

Sampling = Mapping[str, Any]  # vLLM's SamplingParams by name


class NoAnswer(Exception):  # noqa: N818 (of one group, not of the program: it is dropped)
    """vLLM has not answered in time."""


class TimedClient(LLMServerClient):
    """verl's client with one request for a group, and with a time limit for its answers, `rollout.timeout`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds: float = self.config.pathor1.rollout_timeout

    @asynccontextmanager
    async def ask(
        self, request_id: str, *, prompt_ids: list[int], samplings: Sequence[Sampling], image_data: Any = None
    ) -> AsyncIterator[Sequence[Awaitable[TokenOutput]]]:
        """What gives an answer to one prompt for each of `samplings`, with its `PARTS`, when vLLM has said it.

        Those that are not there after the time limit raise NoAnswer. Then, and for who leaves before, vLLM stops
        generating too. What has one `request_id` goes to one engine. image_data: the pictures, or a reference to them.
        """
        async with self._request(request_id, prompt_ids, samplings, image_data) as answers:
            yield answers

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: Sampling, image_data: Any = None
    ) -> TokenOutput:
        """One answer, see `ask`."""
        asked = self.ask(request_id, prompt_ids=prompt_ids, samplings=[sampling_params], image_data=image_data)
        async with asked as (answer,):
            return await answer

    @asynccontextmanager
    async def _request(
        self, request_id: str, prompt_ids: list[int], samplings: Sequence[Sampling], image_data: Any
    ) -> AsyncIterator[Sequence[asyncio.Future[TokenOutput]]]:
        answers: list[asyncio.Future[TokenOutput]] = [asyncio.get_running_loop().create_future() for _ in samplings]
        hearing = asyncio.ensure_future(self._hear(request_id, answers, prompt_ids, samplings, image_data))
        try:
            yield answers
        finally:
            hearing.cancel()
            _forget(answers)

    async def _hear(
        self,
        request_id: str,
        answers: Sequence[asyncio.Future[TokenOutput]],
        prompt_ids: list[int],
        samplings: Sequence[Sampling],
        image_data: Any,
    ) -> None:
        """Asks, and hands on each answer that comes, or why none does."""
        limit = asyncio.timeout(self.seconds)
        try:
            async with limit:
                async for place, output in self._answers(request_id, prompt_ids, samplings, image_data):
                    if not answers[place].done():
                        answers[place].set_result(output)
            why: Exception = NoAnswer("vLLM has ended a request without an answer")
        except Exception as error:  # noqa: BLE001 (whoever waits for an answer gets it)
            late = isinstance(error, TimeoutError) and limit.expired()
            why = NoAnswer(f"vLLM has not answered within rollout.timeout = {self.seconds:g} s") if late else error
        for answer in answers:
            if not answer.done():
                answer.set_exception(why)

    async def _answers(
        self, request_id: str, prompt_ids: list[int], samplings: Sequence[Sampling], image_data: Any
    ) -> AsyncIterator[tuple[int, TokenOutput]]:
        """All of them as they come. Where it ends before, Ray cancels the call, which vLLM hears.

        (verl's `abort_request` looks for the caller's id among vLLM's own, which differ.)
        """
        finding = asyncio.ensure_future(self._acquire_server(request_id))
        call, missing = None, len(samplings)
        try:
            _, server = await asyncio.shield(finding)
            call = server.generate_group.remote(prompt_ids, samplings, image_data)
            async for some in call:
                for place, output in await some:
                    output.extra_fields[PARTS] = [(output.extra_fields["global_steps"], len(output.token_ids))]
                    missing -= 1
                    yield place, output
                if not missing:
                    return
        finally:
            if call is not None and missing:
                ray.cancel(call)
            # Also where it is not found yet.
            finding.add_done_callback(lambda found: self._give_back(request_id, found))

    def _give_back(self, request_id: str, found: asyncio.Future[tuple[str, Any]]) -> None:
        if not found.cancelled() and found.exception() is None:
            self._release_server(found.result()[0], request_id=request_id)


class InterruptedClient(TimedClient):
    """One that goes on with an answer which was interrupted, as vLLM was given new weights: by those from there on."""

    @asynccontextmanager
    async def ask(
        self, request_id: str, *, prompt_ids: list[int], samplings: Sequence[Sampling], image_data: Any = None
    ) -> AsyncIterator[Sequence[Awaitable[TokenOutput]]]:
        """Answers of one or more parts. The time limit is for each part, and for what it waits until it goes on."""
        longest: int = self.config.actor_rollout_ref.rollout.response_length
        limits = [sampling.get("max_tokens", longest) for sampling in samplings]
        pairs = list(zip(samplings, limits, strict=True))
        first = [going_on(sampling, 0, most) for sampling, most in pairs]
        async with self._request(request_id, prompt_ids, first, image_data) as beginnings:
            answers = [
                asyncio.ensure_future(self._whole(beginning, request_id, prompt_ids, sampling, most, image_data))
                for beginning, (sampling, most) in zip(beginnings, pairs, strict=True)
            ]
            try:
                yield answers
            finally:
                _forget(answers)

    async def _whole(
        self,
        beginning: Awaitable[TokenOutput],
        request_id: str,
        prompt_ids: list[int],
        sampling: Sampling,
        most: int,
        image_data: Any,
    ) -> TokenOutput:
        token_ids: list[int] = []
        log_probs: list[float] = []
        parts: list[tuple[int, int]] = []
        output = await beginning
        while True:
            token_ids += output.token_ids
            log_probs += output.log_probs or ()
            parts += [part for part in output.extra_fields[PARTS] if part[1]]
            if output.stop_reason not in ("aborted", "abort") or len(token_ids) >= most:
                break
            if not output.token_ids:
                await asyncio.sleep(PAUSE)
            rest = going_on(sampling, len(token_ids), most)
            async with self._request(request_id, [*prompt_ids, *token_ids], [rest], image_data) as (answer,):
                output = await answer
        output.token_ids, output.log_probs = token_ids, log_probs
        output.extra_fields[PARTS] = parts
        return output


def _forget(answers: Iterable[asyncio.Future[TokenOutput]]) -> None:
    """Nobody waits for them any more; asyncio would complain of errors that whoever left early has not asked for."""
    for answer in answers:
        if not answer.cancel() and not answer.cancelled():
            answer.exception()


def going_on(sampling: Sampling, said: int, most: int) -> dict[str, Any]:
    """How the rest of an answer is sampled, of which `said` tokens are there, and no more than `most` may be in all.

    A seed stands for a sequence of random numbers: the same ones again would not be independent of what they have made.
    """
    rest = {**sampling, "max_tokens": most - said}
    if said and "seed" in sampling:
        rest["seed"] = int(np.random.SeedSequence([sampling["seed"], said]).generate_state(1)[0])
    return rest
