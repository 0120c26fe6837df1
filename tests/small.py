"""A small real model, pictures and a recipe to run them with."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

RECIPE = """
name = "run"

[model]
path = "MODEL"
dtype = "float32"
gradient_checkpointing = false

[data]
train = ["TRAIN"]
system_prompt = "none"
max_prompt_tokens = 96
min_pixels = 3136
max_pixels = 3136
workers = 1

[rl]
steps = 4
prompts_per_step = 8
group_size = 4
prompts_per_update = 4
max_response_tokens = 48
learning_rate = 2e-3
weight_decay = 0.0
save_every = 2
max_tokens_per_update = 8192
max_probability_difference = 1e-3

# An untrained model is never right; that some answers are shorter than others is what it can learn from.
[rl.reward]
length = 1.0
overlong_cache_tokens = 47

[rollout]
max_batched_tokens = 2048
enforce_eager = true

[cluster]
accelerators_per_node = 1
"""


@dataclass(frozen=True)
class Small:
    """Files to run on: `recipe` has only to be given a `runs_dir`."""

    recipe: Path
    model: Path
    train: Path


def make_small(folder: Path) -> Small:
    """Renders pictures and makes a model, in seconds."""
    from pathor1.data.rendered import render
    from pathor1.model.tiny import make

    train = render(folder / "data", seed=5, counts={"train": 300})["train"]
    make(folder / "model", [train], seed=5)
    recipe = folder / "recipe.toml"
    text = RECIPE.replace('"MODEL"', json.dumps(str(folder / "model"))).replace('"TRAIN"', json.dumps(str(train)))
    recipe.write_text(text, encoding="utf-8")
    return Small(recipe=recipe, model=folder / "model", train=train)


def as_qwen3_vl(small: Small, folder: Path) -> Small:
    """The same with a small Qwen3-VL: other patches, and pictures that enter the first decoder layers too."""
    import torch
    from transformers import AutoProcessor, Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    processor: Any = AutoProcessor.from_pretrained(small.model)
    half = [0.5, 0.5, 0.5]
    processor.image_processor = Qwen2VLImageProcessor(
        patch_size=16, image_mean=half, image_std=half, min_pixels=32 * 32, max_pixels=1280 * 32 * 32
    )
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    image, video, start, end = processor.tokenizer.convert_tokens_to_ids(list(names))
    text = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": len(processor.tokenizer),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True
        },
    }  # fmt: skip
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 128,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: Any = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return replace(small, model=folder)
