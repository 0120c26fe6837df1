"""Sampled answers with seeds of their own, by vLLM's real engine."""

from __future__ import annotations

from typing import Any

import pytest
from small import Small


def test_an_answer_with_a_seed_is_the_same_however_its_prompt_is_cut(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of 40 tokens, alone and then side by side where 64 tokens are read at a time: most come in two parts."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    from vllm import LLM, SamplingParams

    engine: Any = LLM(
        model=str(small.model),
        dtype="float32",
        max_model_len=64,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,
        enforce_eager=True,
        worker_extension_cls="pathor1.backends.vllm_cpu.CpuWorkerExtension",
    )
    try:
        prompts = [{"prompt_token_ids": list(range(10 + index, 50 + index))} for index in range(8)]
        sampling = [SamplingParams(seed=seed, max_tokens=12, ignore_eos=True) for seed in range(8)]

        def answers(*which: int) -> list[list[int]]:
            asked = [prompts[index] for index in which], [sampling[index] for index in which]
            return [list(output.outputs[0].token_ids) for output in engine.generate(*asked, use_tqdm=False)]

        alone = [answers(index)[0] for index in range(8)]
        assert answers(*range(8)) == alone
        assert len({tuple(answer) for answer in alone}) == 8, "each has drawn its own"
    finally:
        engine.llm_engine.engine_core.shutdown()
