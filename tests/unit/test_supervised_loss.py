"""The loss of a supervised stage against transformers' own, on a real model in small."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from chats import CASES, batch, encoded, processed
from PIL import Image
from small import Small, as_qwen3_vl
from transformers import AutoModelForImageTextToText

from pathor1.prompts import taught_messages
from pathor1.supervised.batches import Batch, Collate
from pathor1.supervised.encode import IGNORED, load_processor
from pathor1.supervised.loss import AssistantLoss

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' own

WITH_PICTURES = ("question", "two pictures", "no picture", "conversation")
WITHOUT = ("no picture", "it begins")


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def small(request: pytest.FixtureRequest, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small if request.param == "qwen2_5_vl" else as_qwen3_vl(small, tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture(scope="module")
def processor(small: Small) -> Any:
    return load_processor(str(small.model))


@pytest.fixture(scope="module")
def loaded(small: Small, processor: Any) -> AssistantLoss:
    model = AutoModelForImageTextToText.from_pretrained(small.model, dtype=torch.float32)
    return AssistantLoss(model, processor.image_processor)


@pytest.fixture
def module(loaded: AssistantLoss) -> Iterator[AssistantLoss]:
    loaded.zero_grad(set_to_none=True)
    yield loaded
    loaded.zero_grad(set_to_none=True)


def made(small: Small, processor: Any, *names: str) -> Batch:
    return batch(small, processor, *(CASES[name] for name in names))


def own_loss(module: AssistantLoss, processor: Any, given: Batch, *names: str) -> torch.Tensor:
    """transformers' mean over learned tokens, times their number; its pixels are the processor's."""
    pictures = [Image.open(io.BytesIO(data)) for name in names for data in CASES[name].images]
    seen = dict(processor.image_processor(images=pictures, return_tensors="pt")) if pictures else {}
    pad, image = processor.tokenizer.convert_tokens_to_ids(["<|vision_pad|>", "<|image_pad|>"])
    blank = 0 if pictures else 1  # the last column
    ids, labels = (tensor[:, : tensor.shape[1] - blank] for tensor in (given.input_ids, given.labels))
    mean = module.model(
        input_ids=ids,
        attention_mask=(ids != pad).long(),
        mm_token_type_ids=(ids == image).long(),
        labels=labels,
        **seen,
    ).loss
    return mean * int((given.labels[:, 1:] != IGNORED).sum())


@pytest.mark.parametrize("names", [WITH_PICTURES, WITHOUT, ("conversation",)])
def test_it_is_transformers_loss_times_the_number_of_learned_tokens(
    module: AssistantLoss, small: Small, processor: Any, names: tuple[str, ...]
) -> None:
    given = made(small, processor, *names)
    ours = module(**given.tensors())
    ours.sum().backward()
    gradients = {name: value.grad for name, value in module.model.named_parameters()}
    module.zero_grad(set_to_none=True)
    theirs = own_loss(module, processor, given, *names)
    theirs.backward()
    assert ours.dtype == torch.float32
    assert ours.shape == (1,)
    assert ours.detach() > 10
    torch.testing.assert_close(ours[0], theirs, rtol=1e-5, atol=1e-4)
    for name, value in module.model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(gradients[name], value.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_a_sum_over_samples_is_the_sum_of_each_whatever_they_are_padded_to(
    module: AssistantLoss, small: Small, processor: Any
) -> None:
    with torch.no_grad():
        together = module(**made(small, processor, *WITH_PICTURES).tensors())
        alone = sum(module(**made(small, processor, name).tensors()) for name in WITH_PICTURES)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("names", [WITH_PICTURES, WITHOUT])
def test_packed_samples_do_not_see_each_other(
    module: AssistantLoss, small: Small, processor: Any, names: tuple[str, ...]
) -> None:
    """The loss and every gradient are those of the samples in rows of their own."""
    samples = [CASES[name] for name in names]
    apart = module(**batch(small, processor, *samples).tensors())
    apart.sum().backward()
    gradients = {name: value.grad for name, value in module.model.named_parameters()}
    module.zero_grad(set_to_none=True)
    packed = module(**batch(small, processor, *samples, packed=True).tensors())
    packed.sum().backward()
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-4)
    for name, value in module.model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name], rtol=1e-3, atol=1e-3, msg=name)


def test_what_stands_before_a_sample_in_its_row_does_not_matter_to_it(
    module: AssistantLoss, small: Small, processor: Any
) -> None:
    first, second, other = encoded(small, CASES["question"], CASES["conversation"], CASES["two pictures"])
    collate = Collate.of(processor)
    with torch.no_grad():
        losses = [
            module(**collate([[(before, 0), (second, 1)]]).tensors(), number_of_sources=2) for before in (first, other)
        ]
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=1e-5, atol=1e-4)
    assert abs(float(losses[0][0] - losses[1][0])) > 1e-2


def test_each_source_has_the_loss_of_its_own_samples(module: AssistantLoss, small: Small, processor: Any) -> None:
    names = ("question", "conversation", "no picture")
    samples = encoded(small, *(CASES[name] for name in names))
    collate = Collate.of(processor)
    with torch.no_grad():
        row = [(samples[0], 2), (samples[1], 0), (samples[2], 2)]
        together = module(**collate([row]).tensors(), number_of_sources=3)
        alone = [float(module(**collate([[(sample, 0)]]).tensors())) for sample in samples]
    assert together.tolist() == pytest.approx([alone[1], 0.0, alone[0] + alone[2]], rel=1e-5)


def test_a_pass_without_samples_gives_every_parameter_a_gradient_of_zero(module: AssistantLoss, processor: Any) -> None:
    """A rank that has nothing left to do waits for the others in the backward pass, too."""
    loss = module(**Collate.of(processor)([]).tensors(), number_of_sources=2)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    for name, value in module.model.named_parameters():
        assert value.grad is not None, name
        assert not value.grad.any(), name


@pytest.mark.parametrize("case", ["question", "two pictures", "conversation"])
def test_pixels_are_normalised_as_the_processor_does(
    module: AssistantLoss, small: Small, processor: Any, case: str
) -> None:
    sample = CASES[case]
    theirs = processed(taught_messages(sample, "none"), sample, processor, asks=False)["pixel_values"]
    ours = module.normalized(made(small, processor, case).patches)
    assert ours.shape == theirs.shape
    assert float((ours - torch.from_numpy(theirs)).abs().max()) < 1e-5


def test_pixels_are_in_the_models_type(module: AssistantLoss, small: Small, processor: Any) -> None:
    patches = made(small, processor, "question").patches
    whole = module.normalized(patches)
    try:
        module.model.to(torch.bfloat16)
        half = module.normalized(patches)
    finally:
        module.model.to(torch.float32)
    assert (whole.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert float((whole - half.float()).abs().max()) < 0.02


def vision_gradients(module: AssistantLoss) -> dict[str, torch.Tensor | None]:
    return {name: value.grad for name, value in module.model.named_parameters() if ".visual." in name}


def test_a_batch_without_pictures_gives_the_vision_tower_a_gradient_of_zero(
    module: AssistantLoss, small: Small, processor: Any
) -> None:
    """Without any, ranks that wait for each other's gradients would wait for ever."""
    module(**made(small, processor, *WITHOUT).tensors()).sum().backward()
    gradients = vision_gradients(module)
    assert len(gradients) > 10
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert not gradient.any(), name
    assert any(value.grad.any() for value in module.model.lm_head.parameters())


def test_a_batch_with_pictures_teaches_the_vision_tower(module: AssistantLoss, small: Small, processor: Any) -> None:
    module(**made(small, processor, "question", "no picture").tensors()).sum().backward()
    for name, gradient in vision_gradients(module).items():
        assert gradient is not None, name
        assert gradient.any(), name
