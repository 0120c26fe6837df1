"""The places of tokens in time, height and width against those that the models compute themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from pathor1.errors import DataError
from pathor1.supervised.positions import positions


class Own:
    """What of a model `get_rope_index` needs."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=4))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name).__get__(self)


@st.composite
def chats(draw: st.DrawFn) -> tuple[list[bool], list[tuple[int, int, int]]]:
    """Text and pictures in turn, text first: every picture has a token before it that announces it."""
    is_image: list[bool] = []
    grids: list[tuple[int, int, int]] = []
    for _ in range(draw(st.integers(0, 3))):
        is_image += [False] * draw(st.integers(1, 9))
        height, width = 2 * draw(st.integers(1, 5)), 2 * draw(st.integers(1, 5))
        grids.append((1, height, width))
        is_image += [True] * (height * width // 4)
    return is_image + [False] * draw(st.integers(1, 9)), grids


@pytest.mark.parametrize("model", [Qwen2_5_VLModel, Qwen3VLModel])
@given(chat=chats())
def test_they_are_the_models_own(model: Any, chat: tuple[list[bool], list[tuple[int, int, int]]]) -> None:
    is_image, grids = chat
    theirs, _ = Own(model).get_rope_index(
        input_ids=torch.zeros((1, len(is_image)), dtype=torch.long),
        mm_token_type_ids=torch.tensor([is_image]).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    ours = positions(np.array(is_image), np.array(grids, dtype=np.int64).reshape(-1, 3), 2)
    assert ours[0].tolist() == list(range(len(is_image)))
    assert ours[1:].tolist() == theirs[:, 0].tolist()


def test_a_worked_example() -> None:
    """Two tokens of text, a picture of 2 x 3 tokens, two of text: these go on from the larger side."""
    is_image = np.array([False, False, *[True] * 6, False, False])
    found = positions(is_image, np.array([[1, 4, 6]]), 2)
    assert found.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


@pytest.mark.parametrize("count", [5, 7])
def test_another_number_of_image_tokens_than_the_grid_has_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"^{count} image tokens for pictures of 6; "):
        positions(np.array([False, *[True] * count]), np.array([[1, 4, 6]]), 2)
