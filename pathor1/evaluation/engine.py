"""vLLM in one process: questions in, answers out."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from pathor1.benchmark import BenchmarkRecipe
from pathor1.data.images import decode
from pathor1.data.prompt_length import prompt_tokens
from pathor1.errors import DataError
from pathor1.evaluation.answers import Answer, Found
from pathor1.evaluation.questions import Asked
from pathor1.prompts import messages
from pathor1.samples import Sample


def environment(recipe: BenchmarkRecipe) -> dict[str, str]:
    """How torch and vLLM are to run: variables that have to be set before they are first imported."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        # Read by vLLM's CPU engine only.
        "VLLM_CPU_KVCACHE_SPACE": str(recipe.rollout.cpu_kv_cache_gb),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def set_environment(recipe: BenchmarkRecipe) -> None:
    """Sets them for this process; what the user has set himself wins."""
    for name, value in environment(recipe).items():
        os.environ.setdefault(name, value)


class Engine:
    """One model in vLLM; its memory is free again when the `with` block ends."""

    def __init__(self, model: str, recipe: BenchmarkRecipe, accelerator: str) -> None:
        from transformers import AutoProcessor
        from vllm import LLM

        self.recipe = recipe
        rollout = recipe.rollout
        self.processor: Any = AutoProcessor.from_pretrained(model)
        self.llm: Any = LLM(
            model=model,
            # On a CPU vLLM would take "auto" for half precision, which the trained model does not run in.
            dtype="float32" if accelerator == "cpu" else rollout.dtype,
            max_model_len=recipe.data.max_prompt_tokens + recipe.max_new_tokens,
            max_num_seqs=rollout.max_sequences,
            max_num_batched_tokens=rollout.max_batched_tokens,
            tensor_parallel_size=rollout.tensor_parallel,
            gpu_memory_utilization=rollout.memory_fraction,
            enforce_eager=rollout.enforce_eager or accelerator == "cpu",
            seed=recipe.seed,
            use_tqdm_on_load=False,
        )

    def answers(self, questions: Sequence[Asked]) -> list[Found]:
        """All answers to each question, in order: the sampled ones where it is asked so, else the greedy one.

        Raises DataError for a picture that cannot be read, and a prompt longer than data.max_prompt_tokens.
        """
        prompts = [self._prompt(asked.sample) for asked in questions]
        outputs = self.llm.generate(prompts, [self._sampling(asked.kind) for asked in questions], use_tqdm=False)
        return [
            Found(
                asked.kind,
                Answer(
                    id=asked.sample.id,
                    number=number,
                    text=one.text,
                    finish=one.finish_reason,
                    tokens=len(one.token_ids),
                ),
            )
            for asked, output in zip(questions, outputs, strict=True)
            for number, one in enumerate(output.outputs)
        ]

    def _sampling(self, kind: str) -> Any:
        from vllm import SamplingParams

        # The engine's seed is what sampling comes from; a seed for each request fails on vLLM's CPU engine.
        evaluation = self.recipe.evaluation
        sampled = kind == "sampled"
        return SamplingParams(
            n=evaluation.sampled_answers if sampled else 1,
            temperature=evaluation.temperature if sampled else 0.0,
            max_tokens=self.recipe.max_new_tokens,
        )

    def _prompt(self, sample: Sample) -> dict[str, Any]:
        data = self.recipe.data
        try:
            pictures = [decode(one, min_pixels=data.min_pixels, max_pixels=data.max_pixels) for one in sample.images]
        except DataError as error:
            raise DataError(f"sample {sample.id!r}: {error}") from error
        tokens = prompt_tokens(sample, [one.size for one in pictures], self.processor, data.system_prompt)
        if tokens > data.max_prompt_tokens:
            raise DataError(
                f"sample {sample.id!r}: {tokens} tokens of prompt, data.max_prompt_tokens is {data.max_prompt_tokens}"
            )
        chat = messages(sample, data.system_prompt)
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt: dict[str, Any] = {"prompt": text}
        if pictures:
            prompt["multi_modal_data"] = {"image": pictures}
        return prompt

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
