"""What of a model trains, by the names of its parameters: parts that are frozen, and low-rank adapters (LoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pathor1.training import Lora, Part, Stage

# The linear layers of a decoder block of Qwen2.5-VL and Qwen3-VL. The vision tower has some of the same names.
TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
ADAPTER = "default"  # peft's name for the only one


def part(name: str) -> Part:
    """The part of a model that a parameter belongs to.

    Example: "model.visual.merger.mlp.0.weight" -> "projector". Qwen3-VL has more mergers, for DeepStack.
    """
    if ".visual." not in f".{name}":
        return "language_model"
    return "projector" if ".merger." in name or ".deepstack_merger_list." in name else "vision_tower"


def choose(model: Any, training: Stage) -> None:
    """Lets what the stage trains have gradients, and nothing else; with `lora`, puts adapters in."""
    if training.lora is not None:
        _inject(model, training.lora)
    for name, parameter in model.named_parameters():
        if training.lora is not None and part(name) == "language_model":
            parameter.requires_grad_(".lora_" in name)
        else:
            parameter.requires_grad_(part(name) not in training.freeze)


def _inject(model: Any, lora: Lora) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=TARGETS), model)


def merged(state: Mapping[str, torch.Tensor], lora: Lora | None) -> dict[str, torch.Tensor]:
    """A state dict with adapters -> that of the model without: W + alpha / rank B A, in float32, in the type of W."""
    if lora is None:
        return dict(state)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        stem, adapted, kind = name.partition(".base_layer.")
        a = state.get(f"{stem}.lora_A.{ADAPTER}.weight") if adapted and kind == "weight" else None
        if a is not None:
            b = state[f"{stem}.lora_B.{ADAPTER}.weight"]
            delta = (b.float() @ a.float()) * (lora.alpha / lora.rank)
            tensor = (tensor.float() + delta).to(tensor.dtype)  # noqa: PLW2901
        found[f"{stem}.{kind}" if adapted else name] = tensor
    return found
