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
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar, cast
from uuid import uuid4

import ray
import torch
import transfer_queue as tq
from PIL import Image
from tensordict import TensorDict
from verl.experimental.agent_loop import AgentLoopManager
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.workers.rollout.replica import TokenOutput

from pathor1 import interpreter
from pathor1.data.images import fit
from pathor1.errors import DataError
from pathor1.prompts import messages
from pathor1.rl import pictures
from pathor1.rl.agent_settings import Settings
from pathor1.rl.client import PARTS, NoAnswer
from pathor1.rl.groups import Group
from pathor1.rl.ledger import LedgerRow
from pathor1.rl.reward_function import Program, RewardFailed, RewardFunction, fields
from pathor1.rl.rollouts import Prompt, Rollout, queue_batch, queue_fields, queue_tag, rollout_seed
from pathor1.rl.sampler import PARTITION, PROBE, probe_keys
from pathor1.rl.scoring import RolloutScore, score_rollout
from pathor1.samples import Sample

logger = logging.getLogger(__name__)
T = TypeVar("T")
# What stands for vLLM's reason to stop where it gave no answer to a held-out question.
FAILED = "failed"
# Tokens of an answer by which vLLM is compared with the actor, at most.
PROBE_TOKENS = 64
# How held-out questions are answered.
GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": False}

# verl's worker is a Ray actor class; what can be subclassed is the class that it was made of. Of the class in between
# Ray would take the name, and show our actors and their tasks under verl's.
_Worker: Any = cast(Any, AgentLoopWorkerTQ).__ray_metadata__.modified_class.__ray_actor_class__


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
        interpreter.settle()

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
                rollouts = await self._roll_out(uid, shared, sampling_params)
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

    async def probe(self, sample: Sample, step: int, copies: int) -> list[dict[str, Any]]:
        """Puts an answer into the queue under `probe_keys`, as the present weights give it; returns their tags.

        [] where it is not given in time. It is short, and nothing is learned from it.
        """
        engine = self.config.actor_rollout_ref.rollout
        sampling = {name: engine[name] for name in ("temperature", "top_p", "top_k")}
        most = min(PROBE_TOKENS, self.settings.most_response_tokens)
        sampling |= {"repetition_penalty": 1.0, "logprobs": True, "max_tokens": most}
        if self.settings.seed is not None:  # vLLM takes none of a batch's seeds where one of its answers has none
            sampling["seed"] = rollout_seed(self.settings.seed, step, self.settings.count)
        shared, vision = await asyncio.to_thread(self._process, sample)
        try:
            rollout = await self._say(shared, sampling)
        except NoAnswer:
            return []
        shared = replace(shared, carried=await pictures.store(PROBE, vision))
        fields = queue_fields(PROBE, shared, rollout, mask_truncated=False)
        tags = [queue_tag(step, shared, rollout)] * copies
        await tq.async_kv_batch_put(
            keys=list(probe_keys(copies)),
            fields=queue_batch([fields] * copies),
            tags=tags,
            partition_id=PARTITION,
        )
        return tags

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
            rollout = await self._say(shared, GREEDY)
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
        # Tensors of the pictures alone: the processor counts the picture tokens of a text, and those of a tensor one by
        # one, in Python, at 5 to 10 ms a question.
        options = {"images_kwargs": {"return_tensors": "pt"}}
        inputs = dict(self.processor(text=[text], images=images or None, **options))
        token_ids, attention_mask = (torch.tensor(inputs.pop(name)) for name in ("input_ids", "attention_mask"))
        limit = self.settings.most_prompt_tokens
        if token_ids.shape[1] > limit:
            raise ValueError(
                f"the prompt has {token_ids.shape[1]} tokens and data.max_prompt_tokens is {limit}; "
                "raise it or lower data.max_pixels"
            )
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

    async def _roll_out(self, uid: str, prompt: Prompt, sampling_params: dict[str, Any]) -> list[Rollout]:
        """All answers of a group, each scored as it arrives."""
        count, seed = self.settings.count, self.settings.seed
        samplings = [sampling_params] * count
        if seed is not None:
            samplings = [{**sampling_params, "seed": rollout_seed(seed, int(uid), index)} for index in range(count)]
        # The pictures are a reference, which Ray resolves where vLLM runs.
        asked = self.llm_client.ask(uid, prompt_ids=prompt.token_ids, samplings=samplings, image_data=prompt.images)
        async with asked as answers:
            return await together([self._scored(prompt, answer, own_reward=True) for answer in answers])

    async def _say(self, prompt: Prompt, sampling_params: dict[str, Any]) -> Rollout:
        """One answer with its score by the built-in rule."""
        answer = self.llm_client.generate(
            uuid4().hex, prompt_ids=prompt.token_ids, sampling_params=sampling_params, image_data=prompt.images
        )
        return await self._scored(prompt, answer, own_reward=False)

    async def _scored(self, prompt: Prompt, answer: Awaitable[TokenOutput], *, own_reward: bool) -> Rollout:
        """One answer with its score; own_reward: by the function of the run's own, where it has one."""
        output = await answer
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
        return Rollout(
            token_ids=token_ids,
            log_probs=list(output.log_probs or ())[:limit],
            text=text,
            score=score,
            parts=tuple(output.extra_fields[PARTS]),
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
            "policy_version": rollout.first_version,
            "last_policy_version": rollout.last_version if len(rollout.parts) > 1 else None,
        }

    async def _publish(self, uid: str, step: int, prompt: Prompt, rollouts: list[Rollout]) -> Group:
        masks = self.settings.mask_truncated
        await tq.async_kv_batch_put(
            keys=[f"{uid}_{index}_0" for index in range(len(rollouts))],
            fields=queue_batch([queue_fields(uid, prompt, rollout, mask_truncated=masks) for rollout in rollouts]),
            tags=[queue_tag(step, prompt, rollout) for rollout in rollouts],
            partition_id=PARTITION,
        )
        return Group(
            number=int(uid),
            sample=prompt.sample.id,
            step=step,
            accuracies=tuple(rollout.score.accuracy for rollout in rollouts),
            keys=tuple(f"{uid}_{index}_0" for index in range(len(rollouts))),
            tags=tuple(queue_tag(step, prompt, rollout) for rollout in rollouts),
            rows=tuple(self._row(step, rollout, prompt.sample) for rollout in rollouts),
        )


def _failed(why: str) -> Rollout:
    """No answer: a wrong one, with the reason."""
    score = RolloutScore(total=0.0, format=0.0, accuracy=0.0, length=0.0, parsed=None, reason=why, truncated=False)
    return Rollout(token_ids=[], log_probs=[], text="", score=score, parts=(), stop_reason=FAILED)


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
