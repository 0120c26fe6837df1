"""Asks vLLM for one answer, and does not wait for it longer than the recipe says.

verl's own client waits without end, and goes on generating for who has given up.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import ray
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput


class NoAnswer(Exception):  # noqa: N818 (of one rollout, not of the program: its group is dropped)
    """vLLM has not answered in time."""


class TimedClient(LLMServerClient):
    """verl's client with a time limit, `rollout.timeout`, for each answer."""

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], image_data: Any = None
    ) -> TokenOutput:
        """One answer. Requests with one `request_id` go to one engine.

        Raises NoAnswer after the time limit. Then, and when this is cancelled, vLLM stops generating too: Ray cancels
        the call, which vLLM hears. (verl's `abort_request` looks for the caller's id among vLLM's own, which differ.)
        """
        seconds: float = self.config.pathor1.rollout_timeout
        server_id, call = None, None
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                server_id, server = await self._acquire_server(request_id)
                call = server.generate.remote(
                    request_id=uuid4().hex,
                    prompt_ids=prompt_ids,
                    sampling_params=sampling_params,
                    image_data=image_data,
                )
                output: TokenOutput = await call
                call = None
                return output
        except TimeoutError:
            if not limit.expired():
                raise
            raise NoAnswer(f"vLLM has not answered within rollout.timeout = {seconds:g} s") from None
        finally:
            if call is not None:
                ray.cancel(call)
            if server_id is not None:
                self._release_server(server_id, request_id=request_id)
