"""The length of a prompt, counted without processing its pictures."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from small import Small

from pathor1.data.prompt_length import prompt_tokens, size
from pathor1.model.check import UNKNOWN_LARGEST, largest_weight
from pathor1.prompts import messages
from pathor1.samples import read


@pytest.mark.parametrize("sides", [(), ((56, 56),), ((56, 56), (140, 84)), ((200, 61), (57, 83), (28, 28))])
@pytest.mark.parametrize("system_prompt", ["none", "chain_of_thought"])
def test_it_is_what_the_processor_makes(small: Small, sides: tuple[tuple[int, int], ...], system_prompt: str) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(small.model)
    pictures = [Image.new("RGB", side, "pink") for side in sides]
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    sample = replace(next(iter(read(small.train))), images=tuple(encoded))
    assert [size(picture) for picture in encoded] == list(sides)
    chat = messages(sample, system_prompt)  # type: ignore[arg-type]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    whole = processor(text=[text], images=pictures or None)["input_ids"][0]
    assert prompt_tokens(sample, sides, processor, system_prompt) == len(whole)  # type: ignore[arg-type]


def test_the_largest_weight_is_read_from_the_headers(small: Small, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(small.model / "model.safetensors")
    assert largest_weight(str(small.model)) == max(4 * weight.size for weight in weights.values())
    assert largest_weight("Qwen/Qwen2.5-VL-7B-Instruct") == UNKNOWN_LARGEST
    assert largest_weight(str(tmp_path)) == UNKNOWN_LARGEST
