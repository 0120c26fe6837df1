"""vLLM's warnings of layers without weights are left out, those of layers with weights are not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pathor1.backends.reload_log import FAILED, LOGGER, quiet_about, without_weights


class Table(torch.nn.Module):
    """A buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(2))


def test_only_layers_without_parameters_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Table(), torch.nn.LayerNorm(2, elementwise_affine=False))
    model.append(torch.nn.LayerNorm(2))  # one of its class has weights
    quiet = without_weights(model)
    assert quiet == {"Table"}
    logger = logging.getLogger(LOGGER)
    with caplog.at_level(logging.WARNING, logger=LOGGER), quiet_about(quiet):
        for name in ("Table", "Linear", "LayerNorm"):
            logger.warning(FAILED, name)
        logger.warning("%s: Delayed processing", "Table")
    assert caplog.messages == [
        "Linear: Failed to load weights",
        "LayerNorm: Failed to load weights",
        "Table: Delayed processing",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        logger.warning(FAILED, "Table")
    assert caplog.messages == ["Table: Failed to load weights"], "elsewhere vLLM says it as it is"


def test_the_words_are_those_of_the_vllm_that_is_installed() -> None:
    vllm = pytest.importorskip("vllm")
    said = Path(vllm.__file__).with_name("model_executor") / "model_loader" / "reload" / "layerwise.py"
    assert f'logger.warning("{FAILED}"' in said.read_text(encoding="utf-8")
