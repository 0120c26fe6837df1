"""Positions of an answer go on where transformers' own would, for the whole sequence at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import Small

from pathor1.rl.rollouts import continue_positions

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' own


@pytest.fixture(scope="module")
def processor(small: Small) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(small.model)


@pytest.fixture(scope="module")
def model(small: Small) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(small.model)


def inputs(processor: Any, sizes: list[tuple[int, int]], order: str) -> dict[str, torch.Tensor]:
    """A prompt with pictures, in front of its text, behind it, or on either side."""
    pictures = [Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)) for width, height in sizes]
    text: list[dict[str, Any]] = [{"type": "text", "text": "Which tile is stained more?"}]
    shown: list[dict[str, Any]] = [{"type": "image"} for _ in sizes]
    content = {"before": shown + text, "behind": text + shown, "between": shown[:1] + text + shown[1:]}[order]
    chat = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return dict(processor(text=[prompt], images=pictures or None, return_tensors="pt"))


def positions(model: Any, ids: torch.Tensor, kinds: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
    """[4, n]: text positions, and time, height and width by Qwen2.5-VL's own rule."""
    vision, _ = model.model.get_rope_index(ids, kinds, image_grid_thw=grids, attention_mask=torch.ones_like(ids))
    assert vision.shape == (3, 1, ids.shape[1])
    return torch.cat([torch.arange(ids.shape[1])[None], vision[:, 0]])


SIZES = {
    "none": [],
    "small": [(28, 28)],
    "wide": [(280, 56)],
    "tall": [(56, 280)],
    "two": [(140, 84), (56, 112)],
}


@pytest.mark.parametrize("length", [1, 2, 33])
@pytest.mark.parametrize("order", ["before", "behind", "between"])
@pytest.mark.parametrize("pictures", SIZES)
def test_an_answer_goes_on_as_the_whole_sequence_would(
    model: Any, processor: Any, pictures: str, order: str, length: int
) -> None:
    given = inputs(processor, SIZES[pictures], order)
    ids, kinds, grids = given["input_ids"], given["mm_token_type_ids"], given.get("image_grid_thw")
    prompt = positions(model, ids, kinds, grids)
    answer = torch.full((1, length), processor.tokenizer.eos_token_id)
    whole = positions(
        model, torch.cat([ids, answer], dim=1), torch.cat([kinds, torch.zeros_like(answer)], dim=1), grids
    )
    assert torch.equal(continue_positions(prompt, length), whole)


def test_a_prompt_that_ends_in_a_picture_goes_on_from_its_largest_position() -> None:
    # A picture of 2 x 6 tokens at position 3: time stays, height and width count on; the next text is at 3 + 6.
    time, height, width = [3] * 12, [3] * 6 + [4] * 6, [3, 4, 5, 6, 7, 8] * 2
    prompt = torch.tensor([range(15), [0, 1, 2, *time], [0, 1, 2, *height], [0, 1, 2, *width]])
    found = continue_positions(prompt, 2)
    assert found[:, :15].equal(prompt)
    assert found[:, 15:].tolist() == [[15, 16], [9, 10], [9, 10], [9, 10]]


def test_the_type_stays(model: Any) -> None:
    prompt = torch.arange(4).expand(4, 4)
    for type_ in (torch.int32, torch.int64):
        found = continue_positions(prompt.to(type_), 3)
        assert (found.dtype, found.shape) == (type_, (4, 7))
    assert continue_positions(prompt, 0).equal(prompt)
