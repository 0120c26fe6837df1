"""DeepSpeed's config for a supervised stage."""

from __future__ import annotations

from typing import Any

import pytest

from pathor1.recipe import Model
from pathor1.supervised.engine import deepspeed_config
from pathor1.training import Stage


@pytest.mark.parametrize(
    ("gpu", "stage", "copies"),
    [
        (False, {"zero_stage": 2}, False),
        (False, {"zero_stage": 2, "offload": ["optimizer"]}, None),
        (False, {"zero_stage": 1}, None),
        (False, {"zero_stage": 3}, None),
        (True, {"zero_stage": 2}, None),
    ],
)
def test_gradients_are_not_copied_where_nothing_is_gained_by_it(gpu: bool, stage: dict[str, Any], copies: Any) -> None:
    training = Stage.model_validate({"steps": 1, **stage})
    config = deepspeed_config(Model(path="m"), training, gpu=gpu)
    assert config["zero_optimization"].get("contiguous_gradients") is copies
