"""A small real model, pictures and a recipe to run them with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

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
