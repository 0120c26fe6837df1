"""What a question and an answer to it are on their way through the agent, and what becomes of them in verl's queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from tensordict import NonTensorStack, TensorDict

from pathor1.rl.scoring import RolloutScore
from pathor1.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What all rollouts of a group share.

    sample: without its encoded pictures; images: the decoded ones, a list in Ray's object store for as long as
    something refers to it, None without pictures; token_ids: [P] with every picture expanded to its image tokens;
    position_ids: [4, P] (text, then time, height and width of mRoPE); carried: what stands in the rollouts for the
    pictures in the queue (`pictures.store`), {} without pictures.
    """

    sample: Sample
    images: ray.ObjectRef | None
    token_ids: list[int]
    position_ids: torch.Tensor
    carried: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One answer: [R] token ids and their log-probabilities under the policies that generated them.

    parts: which policy has said how many of them, in order: (version, tokens).
    """

    token_ids: list[int]
    log_probs: list[float]
    text: str
    score: RolloutScore
    parts: tuple[tuple[int, int], ...]
    stop_reason: str  # vLLM's: completed, length, aborted; or `agent.FAILED`

    @property
    def first_version(self) -> int:
        """The policy that has said the first token; -1 where none has."""
        return self.parts[0][0] if self.parts else -1

    @property
    def last_version(self) -> int:
        """The policy that has said the last."""
        return self.parts[-1][0] if self.parts else -1


def continue_positions(prompt: torch.Tensor, length: int) -> torch.Tensor:
    """[4, P] positions of a prompt -> [4, P + length] with text after it.

    Text counts on in every row: the text row from its last value, the three mRoPE rows from the largest of theirs
    (as Qwen2.5-VL's get_rope_index does).
    """
    steps = torch.arange(1, length + 1, dtype=prompt.dtype)
    text = prompt[:1, -1:] + steps
    vision = (prompt[1:].max() + steps).expand(3, length)
    return torch.cat([prompt, torch.cat([text, vision])], dim=1)


def rollout_seed(seed: int, number: int, index: int) -> int:
    """Seed of one answer, 0 to 2^32 - 1: of the run's seed, the question's number in the run, and the rollout's in it.

    vLLM would draw all answers of an engine from one stream of random numbers, in the order in which they come along.
    """
    return int(np.random.SeedSequence([seed, number, index]).generate_state(1)[0])


def queue_fields(uid: str, prompt: Prompt, rollout: Rollout, *, mask_truncated: bool) -> dict[str, Any]:
    """A rollout as verl's trainer reads it from the queue."""
    tokens, score = len(rollout.token_ids), rollout.score
    is_learned = not (mask_truncated and score.truncated)
    mask = torch.full((tokens,), int(is_learned), dtype=torch.int64)
    rewards = torch.zeros(tokens, dtype=torch.float32)
    rewards[-1] = score.total  # an outcome reward stands on the last token
    prompts = torch.tensor(prompt.token_ids, dtype=torch.int64)
    responses = torch.tensor(rollout.token_ids, dtype=torch.int64)
    return {
        "uid": uid,
        "prompts": prompts,
        "responses": responses,
        "response_mask": mask,
        "loss_mask": mask.clone(),
        "input_ids": torch.cat([prompts, responses]),
        "position_ids": continue_positions(prompt.position_ids, tokens),
        "multi_modal_inputs": prompt.carried,
        "rollout_log_probs": torch.tensor(rollout.log_probs, dtype=torch.float32),
        "rm_scores": rewards,
        "num_turns": 2,
    }


def queue_batch(rows: Sequence[Mapping[str, Any]]) -> TensorDict:
    """The `queue_fields` of several rollouts, for one call of the queue, of which each costs milliseconds.

    A field whose tensors differ in shape, as answers do in length, goes as a stack of objects. The queue takes a nested
    tensor apart again, at twice the cost, and hands out the same for both.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return TensorDict({name: _column(values) for name, values in columns.items()}, batch_size=len(rows))


def _column(values: Sequence[Any]) -> torch.Tensor | NonTensorStack:
    shapes = {value.shape if isinstance(value, torch.Tensor) else None for value in values}
    return NonTensorStack(*values) if None in shapes or len(shapes) > 1 else torch.stack(list(values))


def queue_tag(step: int, prompt: Prompt, rollout: Rollout) -> dict[str, Any]:
    """What verl's queue is told of a rollout. step: in which it was asked; last_tokens: said by its last policy."""
    prompt_tokens, response_tokens = len(prompt.token_ids), len(rollout.token_ids)
    return {
        "status": "success",
        "prompt_len": prompt_tokens,
        "response_len": response_tokens,
        "seq_len": prompt_tokens + response_tokens,
        "global_steps": step,
        "min_global_steps": rollout.first_version,
        "max_global_steps": rollout.last_version,
        "last_tokens": rollout.parts[-1][1],
    }
