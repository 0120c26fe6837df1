"""What vLLM says when weights are loaded again, without its warnings of layers that have none.

vLLM tells of each layer that nothing was loaded into, and counts buffers: of rotary embeddings, whose tables a model
works out by itself, a run would read "Failed to load weights" at each step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LOGGER = "vllm.model_executor.model_loader.reload.layerwise"
FAILED = "%s: Failed to load weights"


def without_weights(model: torch.nn.Module) -> frozenset[str]:
    """Names of the classes of a model's layers of which none has a parameter."""
    have: dict[str, bool] = {}
    for layer in model.modules():
        name = type(layer).__name__
        have[name] = have.get(name, False) or any(True for _ in layer.parameters())
    return frozenset(name for name, has in have.items() if not has)


@contextmanager
def quiet_about(layers: frozenset[str]) -> Iterator[None]:
    """Leaves out that nothing was loaded into layers of these classes."""

    def says(record: logging.LogRecord) -> bool:
        return not (record.msg == FAILED and isinstance(record.args, tuple) and record.args[0] in layers)

    logger = logging.getLogger(LOGGER)
    logger.addFilter(says)
    try:
        yield
    finally:
        logger.removeFilter(says)
