"""How long a prompt will be, without processing its pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from pathor1.prompts import SystemPrompt, messages
from pathor1.samples import Sample


def prompt_tokens(sample: Sample, sizes: Sequence[tuple[int, int]], processor: Any, system_prompt: SystemPrompt) -> int:
    """The tokens of a question's prompt, each picture counted as the image tokens that it becomes.

    sizes: width and height of each picture as the processor is given it; processor: Qwen2.5-VL's or one like it.
    """
    text = processor.apply_chat_template(messages(sample, system_prompt), add_generation_prompt=True, tokenize=False)
    # A picture has one placeholder in the text.
    return len(processor.tokenizer(text)["input_ids"]) - len(sizes) + image_tokens(sizes, processor)


def image_tokens(sizes: Sequence[tuple[int, int]], processor: Any) -> int:
    """The tokens that pictures of these widths and heights become."""
    images = processor.image_processor
    patches = sum(images.get_number_of_image_patches(height, width, {}) for width, height in sizes)
    return int(patches // images.merge_size**2)


def size(picture: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture, from its header."""
    return Image.open(io.BytesIO(picture)).size
