"""Log-probabilities of tokens on a CPU, many tokens at a time.

verl takes them from flash-attn's kernel, which is for GPUs, or else token by token: a loop of Python with a node of the
graph for each, which costs a small model a third of its backward pass.
"""

from __future__ import annotations

import torch
from verl.utils import torch_functional

# Logits that are looked at together: what is made meanwhile stays in a core's cache.
CHUNK = 1 << 20


def log_probs_from_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[...] the log-probability of each label under logits [..., vocabulary], of float32 or float64.

    The same numbers as verl's `logprobs_from_logits_v2`: x_i - logsumexp(x).
    """
    vocabulary = logits.shape[-1]
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    rows = logits.reshape(-1, vocabulary).split(max(1, CHUNK // vocabulary))
    return chosen - torch.cat([torch.logsumexp(part, dim=-1) for part in rows]).view_as(chosen)


_of_verl = torch_functional.logprobs_from_logits_v2


def _log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if logits.dtype not in (torch.float32, torch.float64):
        return _of_verl(logits, labels)
    return log_probs_from_logits(logits, labels)


def install() -> None:
    """In the place of verl's; again does nothing."""
    torch_functional.logprobs_from_logits_v2 = _log_probs
