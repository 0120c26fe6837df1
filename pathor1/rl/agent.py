"""One question group: the pictures processed once, n answers from vLLM, each scored as it arrives.

verl's own agent loop runs the image processor up to three times for every rollout, and sends the pictures to vLLM with
each; here it runs once for the group. The pictures go into Ray's object store for vLLM, and what the processor made of
them into the queue for training, once and while vLLM has begun. For the rest of its time, the agent holds neither.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast
from uuid import uuid4

import numpy as np
import ray
import torch
import transfer_queue as tq
from PIL import Image
from tensordict import TensorDict
from verl.experimental.agent_loop import AgentLoopManager
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from pathor1.data.images import fit
from pathor1.errors import DataError
from pathor1.prompts import messages
from pathor1.rl import pictures
from pathor1.rl.agent_settings import Settings
from pathor1.rl.client import NoAnswer
from pathor1.rl.groups import Group
from pathor1.rl.ledger import LedgerRow
from pathor1.rl.reward_function import Program, RewardFailed, RewardFunction, fields
from pathor1.rl.scoring import RolloutScore, score_rollout
from pathor1.samples import Sample

logger = logging.getLogger(__name__)
T = TypeVar("T")
# What stands for vLLM's reason to stop where it gave no answer to a held-out question.
FAILED = "failed"
# How held-out questions are answered.
GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": False}

# verl's worker is a Ray actor class; what can be subclassed is the class that it was made of. Of the class in between
# Ray would take the name, and show our actors and their tasks under verl's.
_Worker: Any = cast(Any, AgentLoopWorkerTQ).__ray_metadata__.modified_class.__ray_actor_class__


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
    """One answer: [R] token ids and their log-probabilities under the policy that generated them."""

    token_ids: list[int]
    log_probs: list[float]
    text: str
    score: RolloutScore
    policy_version: int
    stop_reason: str  # vLLM's: completed, length, aborted; or FAILED


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


async def together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs all at a time. Where one fails, the others are cancelled: nobody waits for them."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class QuestionGroupWorker(_Worker):
    """verl's agent-loop worker with a whole question group, instead of one rollout, as the unit of work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings.of(self.config)
        self._finished: asyncio.Queue[Group] = asyncio.Queue()
        self._reward: RewardFunction | None = None
        self._reward_thread = ThreadPoolExecutor(1)  # one call at a time, beside the loop

    async def reward_by(self, program: Program, sample: Mapping[str, Any]) -> None:
        """Has answers judged by a function in the place of the accuracy rule. Raises RecipeError, see its `check`."""
        self._reward = RewardFunction(program)
        await asyncio.to_thread(self._reward.check, sample)

    async def _run_prompt(
        self, prompt: dict[str, Any], sampling_params: dict[str, Any], trajectory: dict[str, Any], trace: bool = False
    ) -> None:
        """Generates, scores and publishes one group, and hands it to whoever waits in `finished`."""
        uid, step = prompt["uid"], prompt["global_steps"]
        sample: Sample = prompt.pop("sample")
        try:
            shared, vision = await asyncio.to_thread(self._process, sample)
            # The last references to the encoded pictures, and to what became of them but for that of who stores it: all
            # are gone while vLLM generates.
            sample, storing = shared.sample, asyncio.ensure_future(pictures.store(uid, vision))
            del vision
            try:
                rollouts = await together(
                    [self._roll_out(uid, index, shared, sampling_params) for index in range(self.settings.count)]
                )
                shared = replace(shared, carried=await storing)
            finally:
                storing.cancel()
            group = await self._publish(uid, step, shared, rollouts)
        except Exception as error:  # the task has no caller: the trainer learns of it by the group
            if not isinstance(error, NoAnswer | RewardFailed):  # those say it all
                logger.exception("question group %s (sample %s) failed", uid, sample.id)
            why = f"{type(error).__name__}: {error}"
            group = Group(number=int(uid), sample=sample.id, step=step, accuracies=(), error=why)
        await self._finished.put(group)

    async def finished(self) -> list[Group]:
        """Waits for the next groups that are done, and returns all there are; see `GroupSampler`."""
        groups = [await self._finished.get()]
        while not self._finished.empty():
            groups.append(self._finished.get_nowait())
        return groups

    async def answer(self, questions: Sequence[tuple[int, Sample]], step: int) -> list[LedgerRow]:
        """One greedy answer to each held-out question, by its number, as the present weights, those of `step`, give it.

        Accuracy is that of the built-in rule. A question that fails is a wrong answer, dropped as `failed` and with its
        reason. Nothing of it reaches the queue.
        """
        return await together([self._answer(number, sample, step) for number, sample in questions])

    async def _answer(self, number: int, sample: Sample, step: int) -> LedgerRow:
        try:
            shared, _ = await asyncio.to_thread(self._process, self._fitted(sample))
            sample = shared.sample
            rollout = await self._say(uuid4().hex, shared, GREEDY, own_reward=False)
        except Exception as error:  # it counts, and `held_out` tells of it
            if not isinstance(error, NoAnswer | DataError | ValueError):  # those say it all
                logger.exception("held-out sample %s failed", sample.id)
            rollout = _failed(" ".join(f"{type(error).__name__}: {error}".split()))
        dropped = "failed" if rollout.stop_reason == FAILED else None
        row = self._row(step, rollout, sample)
        return LedgerRow(step=step, group=str(number), rollout=0, advantage=None, dropped=dropped, **row)

    def _fitted(self, sample: Sample) -> Sample:
        """With its pictures within the run's budget, as the stream hands those of training on."""
        budget = {"min_pixels": self.settings.min_pixels, "max_pixels": self.settings.max_pixels}
        return replace(sample, images=tuple(fit(picture, **budget) for picture in sample.images))

    def _process(self, sample: Sample) -> tuple[Prompt, pictures.Vision]:
        """Decodes and processes the pictures and tokenizes the question: once for the group.

        The prompt, not yet with what it carries, and the processor's `pixel_values` and `image_grid_thw`. Raises
        ValueError where the prompt is longer than the recipe's data.max_prompt_tokens.
        """
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in sample.images]
        chat = messages(sample, self.settings.system_prompt)
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        inputs = dict(self.processor(text=[text], images=images or None, return_tensors="pt"))
        token_ids = inputs.pop("input_ids")
        limit = self.settings.most_prompt_tokens
        if token_ids.shape[1] > limit:
            raise ValueError(
                f"the prompt has {token_ids.shape[1]} tokens and data.max_prompt_tokens is {limit}; "
                "raise it or lower data.max_pixels"
            )
        attention_mask = inputs.pop("attention_mask")
        position_ids = self._compute_position_ids(token_ids, attention_mask, inputs)
        if position_ids.dim() == 2:  # a model without mRoPE
            raise ValueError(f"{self.hf_model_type} has no mRoPE positions; use a Qwen2.5-VL or Qwen3-VL model")
        prompt = Prompt(
            sample=replace(sample, images=()),
            images=ray.put(images) if images else None,
            token_ids=token_ids[0].tolist(),
            position_ids=position_ids[0],
            carried={},
        )
        return prompt, {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}

    async def _roll_out(self, uid: str, index: int, prompt: Prompt, sampling_params: dict[str, Any]) -> Rollout:
        if self.settings.seed is not None:
            sampling_params = {**sampling_params, "seed": rollout_seed(self.settings.seed, int(uid), index)}
        # verl's client sends what has the same name to the same engine, whose caches then have prompt and pictures.
        return await self._say(uid, prompt, sampling_params, own_reward=True)

    async def _say(
        self, request_id: str, prompt: Prompt, sampling_params: dict[str, Any], *, own_reward: bool
    ) -> Rollout:
        """One answer with its score; own_reward: by the function of the run's own, where it has one."""
        output = await self.llm_client.generate(
            request_id=request_id,
            prompt_ids=prompt.token_ids,
            # The text is made here, once; vLLM would make it anew for each token, and one of each log-probability.
            sampling_params={**sampling_params, "detokenize": False},
            # A reference, which verl's client hands on as it is and Ray resolves where vLLM runs.
            image_data=prompt.images,
        )
        settings = self.settings
        limit = settings.most_response_tokens
        token_ids: list[int] = list(output.token_ids)[:limit]
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        score = score_rollout(
            text,
            accuracy=await self._own_reward(text, prompt.sample) if own_reward else None,
            answer=prompt.sample.answer,
            task=prompt.sample.task,
            response_tokens=len(token_ids),
            truncated=len(token_ids) == limit and token_ids[-1] != self.tokenizer.eos_token_id,
            max_response_tokens=limit,
            overlong_cache_tokens=settings.overlong_cache_tokens,
            weights=settings.weights,
        )
        version = output.extra_fields.get("global_steps")
        return Rollout(
            token_ids=token_ids,
            log_probs=list(output.log_probs or ())[:limit],
            text=text,
            score=score,
            policy_version=-1 if version is None else int(version),
            stop_reason=output.stop_reason or "unknown",
        )

    async def _own_reward(self, text: str, sample: Sample) -> float | None:
        """What a function of the run's own says; None = there is none. Raises RewardFailed."""
        if self._reward is None:
            return None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reward_thread, self._reward, text, sample.answer, fields(sample))

    def _row(self, step: int, rollout: Rollout, sample: Sample) -> dict[str, Any]:
        """What the ledger keeps of a rollout: `LedgerRow` without what only the trainer knows."""
        score, weights = rollout.score, self.settings.weights
        return {
            "id": sample.id,
            "source": sample.source,
            "task": sample.task,
            "text": rollout.text,
            "answer": sample.answer,
            "parsed": score.parsed,
            "reason": score.reason,
            "format": score.format,
            "accuracy": score.accuracy,
            "length": score.length,
            "format_weight": weights.format,
            "accuracy_weight": weights.accuracy,
            "length_weight": weights.length,
            "total": score.total,
            "response_tokens": len(rollout.token_ids),
            "truncated": score.truncated,
            "stop_reason": rollout.stop_reason,
            "asked": step,
            "policy_version": rollout.policy_version,
        }

    async def _publish(self, uid: str, step: int, prompt: Prompt, rollouts: list[Rollout]) -> Group:
        # Rollouts of one length go together: their positions stack, and each call to the queue costs milliseconds.
        masks = self.settings.mask_truncated
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, rollout in enumerate(rollouts):
            by_length[len(rollout.token_ids)].append(index)
        await asyncio.gather(
            *(
                tq.async_kv_batch_put(
                    keys=[f"{uid}_{index}_0" for index in alike],
                    fields=list_of_dict_to_tensordict(
                        [_fields(uid, prompt, rollouts[index], mask_truncated=masks) for index in alike]
                    ),
                    tags=[_tag(step, prompt, rollouts[index]) for index in alike],
                    partition_id="train",
                )
                for alike in by_length.values()
            )
        )
        return Group(
            number=int(uid),
            sample=prompt.sample.id,
            step=step,
            accuracies=tuple(rollout.score.accuracy for rollout in rollouts),
            keys=tuple(f"{uid}_{index}_0" for index in range(len(rollouts))),
            tags=tuple(_tag(step, prompt, rollout) for rollout in rollouts),
            rows=tuple(self._row(step, rollout, prompt.sample) for rollout in rollouts),
        )


def _failed(why: str) -> Rollout:
    """No answer: a wrong one, with the reason."""
    score = RolloutScore(total=0.0, format=0.0, accuracy=0.0, length=0.0, parsed=None, reason=why, truncated=False)
    return Rollout(token_ids=[], log_probs=[], text="", score=score, policy_version=-1, stop_reason=FAILED)


def _fields(uid: str, prompt: Prompt, rollout: Rollout, *, mask_truncated: bool) -> dict[str, Any]:
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


def _tag(step: int, prompt: Prompt, rollout: Rollout) -> dict[str, Any]:
    prompt_tokens, response_tokens = len(prompt.token_ids), len(rollout.token_ids)
    return {
        "status": "success",
        "prompt_len": prompt_tokens,
        "response_len": response_tokens,
        "seq_len": prompt_tokens + response_tokens,
        "global_steps": step,
        "min_global_steps": rollout.policy_version,
        "max_global_steps": rollout.policy_version,
    }


class QuestionGroupManager(AgentLoopManagerTQ):
    """verl's manager over `QuestionGroupWorker`s."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agent_loop_workers_class = ray.remote(QuestionGroupWorker)
        self._turn = 0
        AgentLoopManager.__init__(self, *args, **kwargs)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Hands questions to the agents in turn; verl would give every single one to the first."""
        shares: dict[Any, list[int]] = defaultdict(list)
        for index in range(len(prompts)):
            shares[self.agent_loop_workers[(self._turn + index) % len(self.agent_loop_workers)]].append(index)
        self._turn += len(prompts)
        ray.get([agent.generate_sequences.remote(prompts[share]) for agent, share in shares.items()])

    def reward_by(self, program: Program, sample: Mapping[str, Any]) -> None:
        """Has all agents judge by a function of the run's own, and try it with a sample.

        Raises RecipeError where it does not run on a node.
        """
        ray.get([agent.reward_by.remote(program, sample) for agent in self.agent_loop_workers])
