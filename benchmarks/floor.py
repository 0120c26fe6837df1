"""The least that a step can cost: vLLM alone, in the calling process, and bare torch. Run by `step_overhead.py`.

    .venv/bin/python benchmarks/floor.py JOB.json

The same prompts and pictures, as many answers of as many tokens, and the same loss on them: one forward and one
backward pass over all of them, clipping, and a step of AdamW. There is no queue, no other process, no second pass for
the old policy's log-probabilities, no record, and vLLM goes on with the weights that it has loaded.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
    TORCH_COMPILE_DISABLE="1",
    TOKENIZERS_PARALLELISM="false",
)


def questions(job: dict[str, Any], processor: Any) -> list[dict[str, Any]]:
    """Each sample's prompt as vLLM takes it, and what the processor makes of it, in the order of the file."""
    from PIL import Image

    from pathor1.prompts import messages
    from pathor1.samples import read

    found: list[dict[str, Any]] = []
    for sample in read(Path(job["data"])):
        text = processor.apply_chat_template(messages(sample, "none"), add_generation_prompt=True, tokenize=False)
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in sample.images]
        found.append({"prompt": text, "images": images})
    return found


def main() -> None:
    """Makes the steps of a job and prints each one's seconds by phase."""
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
    from vllm import LLM, SamplingParams

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine = LLM(
        job["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=128 + job["tokens"],
        max_num_seqs=1024,
        max_num_batched_tokens=4096,
        distributed_executor_backend="uni",
        seed=0,
    )
    processor: Any = AutoProcessor.from_pretrained(job["model"])
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(job["model"], dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    sampling = SamplingParams(n=job["rollouts"], temperature=1.0, max_tokens=job["tokens"], logprobs=0, ignore_eos=True)
    asked = questions(job, processor)
    for step in range(job["steps"]):
        first = step * job["prompts"]
        batch = [asked[index % len(asked)] for index in range(first, first + job["prompts"])]
        started = time.monotonic()
        outputs = engine.generate(
            [{"prompt": each["prompt"], "multi_modal_data": {"image": each["images"]}} for each in batch],
            sampling,
            use_tqdm=False,
        )
        generated = time.monotonic()
        answers = [answer.token_ids for output in outputs for answer in output.outputs]
        _learn(model, optimizer, processor, batch, answers, job)
        ended = time.monotonic()
        phases = {"generate": generated - started, "update": ended - generated, "step": ended - started}
        print(f"step {step + 1}  {json.dumps(phases)}", flush=True)


def _learn(
    model: Any,
    optimizer: Any,
    processor: Any,
    batch: list[dict[str, Any]],
    answers: list[list[int]],
    job: dict[str, Any],
) -> None:
    """One policy-gradient step on all answers, with advantages that are made up."""
    import torch

    count, tokens = job["rollouts"], job["tokens"]
    texts = [each["prompt"] for each in batch for _ in range(count)]
    images = [image for each in batch for _ in range(count) for image in each["images"]]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="left")
    said = torch.tensor(answers)
    said[said == model.config.image_token_id] = 0  # a model that nobody has trained says such
    ids = torch.cat([inputs["input_ids"], said], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(said)], 1)
    # Which tokens are a picture's: what is said is text.
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(said)], 1)
    advantages = torch.linspace(-1, 1, len(answers)).unsqueeze(1)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
        logits_to_keep=tokens + 1,
        use_cache=False,
        mm_token_type_ids=types,
    ).logits[:, :-1]
    log_probs = torch.log_softmax(logits, -1).gather(-1, said.unsqueeze(-1)).squeeze(-1)
    ratio = (log_probs - log_probs.detach()).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
