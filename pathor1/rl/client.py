"""Asks vLLM for one answer, and does not wait for it longer than the recipe says.

verl's own client waits without end, and goes on generating for who has given up.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

# The entry of `TokenOutput.extra_fields` that says which weights have said what: [(version, tokens), ...] in order.
PARTS = "parts"
# Seconds before an engine that takes no requests is asked again.
PAUSE = 1.0


class NoAnswer(Exception):  # noqa: N818 (of one rollout, not of the program: its group is dropped)
    """vLLM has not answered in time."""


@dataclass(slots=True)
class _Held:
    """An engine that requests of one name have: found once for all of them, and given back by the last."""

    found: asyncio.Future[tuple[str, Any]]
    users: int = 0


class TimedClient(LLMServerClient):
    """verl's client with a time limit, `rollout.timeout`, for each answer, that finds an engine once for each group."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds: float = self.config.pathor1.rollout_timeout
        self._held: dict[str, _Held] = {}

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], image_data: Any = None
    ) -> TokenOutput:
        """One answer, with its `PARTS`. Requests with one `request_id` go to one engine.

        Raises NoAnswer after the time limit. Then, and when this is cancelled, vLLM stops generating too: Ray cancels
        the call, which vLLM hears. (verl's `abort_request` looks for the caller's id among vLLM's own, which differ.)
        """
        call = None
        limit = asyncio.timeout(self.seconds)
        held = self._hold(request_id)
        try:
            async with limit:
                _, server = await asyncio.shield(held.found)
                call = server.generate.remote(
                    request_id=uuid4().hex,
                    prompt_ids=prompt_ids,
                    sampling_params=sampling_params,
                    image_data=image_data,
                )
                output: TokenOutput = await call
                call = None
                output.extra_fields[PARTS] = [(output.extra_fields["global_steps"], len(output.token_ids))]
                return output
        except TimeoutError:
            if not limit.expired():
                raise
            raise NoAnswer(f"vLLM has not answered within rollout.timeout = {self.seconds:g} s") from None
        finally:
            if call is not None:
                ray.cancel(call)
            self._let_go(request_id, held)

    def _hold(self, request_id: str) -> _Held:
        held = self._held.get(request_id)
        if held is None:
            held = self._held[request_id] = _Held(asyncio.ensure_future(self._acquire_server(request_id)))
        held.users += 1
        return held

    def _let_go(self, request_id: str, held: _Held) -> None:
        """Gives the engine back where this was the last request, also where it is not found yet."""
        held.users -= 1
        if held.users == 0:
            del self._held[request_id]
            if held.found.done():
                self._give_back(request_id, held.found)
            else:
                held.found.add_done_callback(lambda found: self._give_back(request_id, found))

    def _give_back(self, request_id: str, found: asyncio.Future[tuple[str, Any]]) -> None:
        if not found.cancelled() and found.exception() is None:
            self._release_server(found.result()[0], request_id=request_id)


class InterruptedClient(TimedClient):
    """One that goes on with an answer which was interrupted, as vLLM was given new weights: by those from there on."""

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], image_data: Any = None
    ) -> TokenOutput:
        """One answer, of one or more parts. The time limit is for each part, and for what it waits until it goes on."""
        most: int = sampling_params.get("max_tokens", self.config.actor_rollout_ref.rollout.response_length)
        token_ids: list[int] = []
        log_probs: list[float] = []
        parts: list[tuple[int, int]] = []
        while True:
            output = await super().generate(
                request_id,
                prompt_ids=[*prompt_ids, *token_ids],
                sampling_params=going_on(sampling_params, len(token_ids), most),
                image_data=image_data,
            )
            token_ids += output.token_ids
            log_probs += output.log_probs or ()
            parts += [part for part in output.extra_fields[PARTS] if part[1]]
            if output.stop_reason not in ("aborted", "abort") or len(token_ids) >= most:
                break
            if not output.token_ids:
                await asyncio.sleep(PAUSE)
        output.token_ids, output.log_probs = token_ids, log_probs
        output.extra_fields[PARTS] = parts
        return output


def going_on(sampling: dict[str, Any], said: int, most: int) -> dict[str, Any]:
    """How the rest of an answer is sampled, of which `said` tokens are there, and no more than `most` may be in all.

    A seed stands for a sequence of random numbers: the same ones again would not be independent of what they have made.
    """
    rest = {**sampling, "max_tokens": most - said}
    if said and "seed" in sampling:
        rest["seed"] = int(np.random.SeedSequence([sampling["seed"], said]).generate_state(1)[0])
    return rest
