"""Log-probabilities of many tokens at a time are verl's, token by token."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("shape", [(70, 500), (3, 7, 500), (5, 1 << 18)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_and_gradients_are_verls(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from pathor1.backends import token_log_probs

    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(shape, generator=generator, dtype=dtype)
    labels = torch.randint(0, shape[-1], shape[:-1], generator=generator)
    found = []
    for function in (token_log_probs.log_probs_from_logits, token_log_probs._of_verl):
        leaf = logits.clone().requires_grad_()
        values = function(leaf, labels)
        values.square().sum().backward()
        found.append((values, leaf.grad))
    (ours, gradient), (theirs, expected) = found
    assert ours.shape == shape[:-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


def test_it_stands_in_verls_place() -> None:
    import verl  # noqa: F401 (its plug-ins put it there)
    from verl.utils import torch_functional

    from pathor1.backends import cpu_build, token_log_probs

    assert (torch_functional.logprobs_from_logits_v2 is token_log_probs._log_probs) == cpu_build()
    half = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    labels = torch.tensor([0, 3, 8, 1])
    expected = token_log_probs._of_verl(half, labels)
    assert torch.equal(torch_functional.logprobs_from_logits_v2(half, labels), expected)
