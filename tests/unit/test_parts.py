"""What trains and what is frozen, by name; adapters, and their merging."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small import Small
from transformers import Qwen2_5_VLForConditionalGeneration

from pathor1.supervised.parts import choose, merged, part
from pathor1.training import Lora, Part, Stage


@pytest.fixture(scope="module")
def whole(small: Small) -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(small.model, dtype=torch.float32)


def training(freeze: list[Part], lora: Lora | None = None) -> Stage:
    return Stage(steps=1, freeze=freeze, lora=lora)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.visual.patch_embed.proj.weight", "vision_tower"),
        ("model.visual.blocks.0.attn.qkv.weight", "vision_tower"),
        ("model.visual.merger.ln_q.weight", "projector"),
        ("visual.merger.mlp.0.weight", "projector"),
        ("model.visual.deepstack_merger_list.1.norm.weight", "projector"),  # Qwen3-VL
        ("model.language_model.layers.0.self_attn.q_proj.weight", "language_model"),
        ("model.language_model.embed_tokens.weight", "language_model"),
        ("lm_head.weight", "language_model"),
    ],
)
def test_names_say_the_part(name: str, expected: str) -> None:
    assert part(name) == expected


@pytest.mark.parametrize(
    "freeze", [[], ["vision_tower"], ["projector"], ["language_model"], ["vision_tower", "projector"]]
)
def test_what_is_not_frozen_trains(whole: Any, freeze: list[Part]) -> None:
    choose(whole, training(freeze))
    trains = {part(name) for name, value in whole.named_parameters() if value.requires_grad}
    stays = {part(name) for name, value in whole.named_parameters() if not value.requires_grad}
    assert stays == set(freeze)
    assert trains == {"vision_tower", "projector", "language_model"} - set(freeze)


def test_adapters_are_on_every_linear_layer_of_the_language_model_and_train_alone_of_it(whole: Any) -> None:
    model = copy.deepcopy(whole)
    choose(model, training(["vision_tower"], Lora(rank=4, alpha=8)))
    trains = {name for name, value in model.named_parameters() if value.requires_grad}
    adapters = {name for name in trains if ".lora_" in name}
    layers = model.config.text_config.num_hidden_layers
    assert len(adapters) == layers * 7 * 2
    assert not any(".visual." in name for name in adapters)
    assert {part(name) for name in trains - adapters} == {"projector"}


def test_merged_weights_are_those_that_peft_makes(whole: Any) -> None:
    model, lora = copy.deepcopy(whole), Lora(rank=4, alpha=8)
    choose(model, training([], lora))
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if ".lora_B." in name:  # zero until they are trained
            value.data = torch.randn(value.shape, generator=generator) * 0.1
    ours = merged(model.state_dict(), lora)
    assert ours.keys() == whole.state_dict().keys()
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            module.merge()
            key = f"{name}.weight"
            torch.testing.assert_close(ours[key], module.base_layer.weight, rtol=1e-6, atol=1e-6)
            assert not torch.equal(ours[key], whole.state_dict()[key])
    untouched = [name for name in ours if "visual" in name or "norm" in name or "embed" in name or "bias" in name]
    assert len(untouched) > 20
    assert all(torch.equal(ours[name], whole.state_dict()[name]) for name in untouched)


def test_without_adapters_nothing_is_merged(whole: Any) -> None:
    state = whole.state_dict()
    assert all(merged(state, None)[name] is tensor for name, tensor in state.items())
