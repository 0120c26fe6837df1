"""The floating-point operations that a model needs for a training pass: what MFU is counted by.

A multiplication with its addition counts as two. A matrix of P weights takes 2 P for each token in the forward pass and
4 P in the backward one. Attention takes, for each query and head, 2 d for the product with each key that it may see and
2 d for that with its value; causal attention sees half of the sequence. What is computed a second time to save memory
(gradient checkpointing), padding, and element-wise work count as nothing: model FLOPs, as in the PaLM paper, appendix
B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the operations of a Qwen2.5-VL depend on."""

    language: int  # weights of the language model's layers; an embedding is looked up and costs nothing
    head: int  # of its last matrix, which a token goes through whose successor is predicted
    layers: int
    width: int  # of all heads of attention together
    vision: int  # weights of the vision blocks' and the patch embedding's matrices, applied to each patch
    merger: int  # of the merger's, applied to each image token
    vision_width: int
    vision_layers: int
    vision_full: int  # of these layers, those with attention over the whole picture
    window: int  # patches of a window
    merge: int  # patches of an image token


def shape(config: Any) -> Shape:
    """Of a transformers config."""
    text, vision = config.text_config, config.vision_config
    hidden, heads = text.hidden_size, text.num_attention_heads
    head = getattr(text, "head_dim", None) or hidden // heads
    attention = hidden * head * (2 * heads + 2 * text.num_key_value_heads)
    layer = attention + 3 * hidden * text.intermediate_size
    wide, merge = vision.hidden_size, vision.spatial_merge_size**2
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    return Shape(
        language=text.num_hidden_layers * layer,
        head=hidden * text.vocab_size,
        layers=text.num_hidden_layers,
        width=heads * head,
        vision=patch * wide + vision.depth * (4 * wide**2 + 3 * wide * vision.intermediate_size),
        merger=(merge * wide) ** 2 + merge * wide * vision.out_hidden_size,
        vision_width=wide,
        vision_layers=vision.depth,
        vision_full=len(vision.fullatt_block_indexes),
        window=(vision.window_size // vision.patch_size) ** 2,
        merge=merge,
    )


def forward(shape: Shape, *, tokens: int, predicted: int, patches: int, causal: bool = True) -> float:
    """Of one sequence of so many tokens (image tokens among them), with pictures of so many patches in all.

    predicted: tokens that the loss is about; the language head has to be asked for no others. The windows at a
    picture's edge are counted as whole ones. causal: False = attention as a kernel computes it that does not leave out
    what is masked.
    """
    attention = shape.layers * 4 * tokens * tokens * shape.width * (0.5 if causal else 1.0)
    seen = shape.vision_full * patches + (shape.vision_layers - shape.vision_full) * min(shape.window, patches)
    vision = 2 * shape.vision * patches + 2 * shape.merger * (patches // shape.merge)
    language = 2 * shape.language * tokens + 2 * shape.head * predicted
    return language + attention + vision + 4 * patches * seen * shape.vision_width


def training(shape: Shape, *, tokens: int, predicted: int, patches: int) -> float:
    """Of the forward and the backward pass of one sequence, all weights being trained."""
    return 3 * forward(shape, tokens=tokens, predicted=predicted, patches=patches)
