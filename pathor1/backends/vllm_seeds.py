"""Answers with a seed of their own, of which vLLM's CPU engine dies when a prompt is read in more than one part.

What is sampled behind a part of a prompt is thrown away, and vLLM takes the request's generator back by an offset,
which generators of the CPU do not have. Here they get their former state back, so that an answer does not depend on how
its prompt was cut. (Where one request of a batch has no seed, the CPU engine takes no notice of those of the others.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


def install() -> None:
    """Once in each of vLLM's workers; again does nothing."""
    if CPUModelRunner._sample is not _sample:
        CPUModelRunner._sample, CPUModelRunner._bookkeeping_sync = _sample, _bookkeeping_sync


_sample_before, _bookkeeping_before = CPUModelRunner._sample, CPUModelRunner._bookkeeping_sync


def _of_unfinished_prompts(runner: Any) -> dict[int, torch.Generator]:
    """The generators of the requests whose sampled token is thrown away, by their place in the batch."""
    batch = runner.input_batch
    places = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0]
    return {int(place): batch.generators[int(place)] for place in places if int(place) in batch.generators}


def _sample(runner: Any, *args: Any, **kwargs: Any) -> Any:
    states = [(generator, generator.get_state()) for generator in _of_unfinished_prompts(runner).values()]
    sampled = _sample_before(runner, *args, **kwargs)
    for generator, state in states:
        generator.set_state(state)
    return sampled


def _bookkeeping_sync(runner: Any, *args: Any, **kwargs: Any) -> Any:
    """vLLM's own, which finds no generator that it would have to take back."""
    taken = _of_unfinished_prompts(runner)
    for place in taken:
        del runner.input_batch.generators[place]
    try:
        return _bookkeeping_before(runner, *args, **kwargs)
    finally:
        runner.input_batch.generators.update(taken)
