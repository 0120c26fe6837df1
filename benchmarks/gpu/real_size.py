"""Qwen2.5-VL in its published sizes with random weights: what a benchmark needs where no weights can be had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# From the config.json of Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct: what differs between the two.
TEXT: dict[str, dict[str, Any]] = {
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
# The vision tower is the same in both but for the width that it hands on.
VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}


def config(size: str, tokenizer: Any) -> Any:
    """The published architecture of a size ("3b", "7b") with the special tokens of `tokenizer`."""
    from transformers import Qwen2_5_VLConfig

    from pathor1.model.tiny import SPECIAL_TOKENS

    ids: dict[str, int] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    tied = TEXT[size]["tie_word_embeddings"]
    return Qwen2_5_VLConfig(
        text_config={
            **TEXT[size],
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={**VISION, "out_hidden_size": TEXT[size]["hidden_size"]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        tie_word_embeddings=tied,
    )


def parameters(config: Any) -> int:
    """How many there are, without making any."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    return sum(parameter.numel() for parameter in model.parameters())


def fill_vocabulary(path: Path, size: int) -> None:
    """Gives a tokenizer's file so many tokens: what no text is made of, but an answer may be.

    verl has vLLM say nothing but the tokenizer's tokens. Of a few hundred a model with random weights would soon say
    the one that ends an answer.
    """
    told = json.loads(path.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = told["model"]["vocab"]
    # A token that was added keeps its number where the vocabulary has it; else it would come behind all others.
    vocabulary.update({token["content"]: token["id"] for token in told["added_tokens"]})
    vocabulary.update({f"#{number}": number for number in range(max(vocabulary.values()) + 1, size)})
    path.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def write(out: Path, size: str, data: Sequence[Path], *, seed: int = 0) -> int:
    """Writes the model's folder in bfloat16, its tokenizer trained on the texts of sample files; returns its size.

    Weights are drawn where there is a GPU on it, which takes seconds instead of minutes.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from pathor1.files import replacing
    from pathor1.model import tiny

    processor = tiny.make_processor([text for path in data for text in tiny.texts_of(path)])
    tokenizer = processor.tokenizer
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model: Any = Qwen2_5_VLForConditionalGeneration(config(size, tokenizer))
    finally:
        torch.set_default_dtype(before)
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.pad_token_id
    )
    with replacing(out) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
        fill_vocabulary(part / "tokenizer.json", TEXT[size]["vocab_size"])
    return sum(parameter.numel() for parameter in model.parameters())
