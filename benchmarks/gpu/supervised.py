"""A supervised step of a real-size model on one GPU: tokens a second, memory and MFU by ZeRO stage.

    .venv/bin/python benchmarks/gpu/supervised.py --model-size 3b --zero 2 3 --out supervised.json

Qwen2.5-VL in its published size with random weights, all of them trained in bfloat16 with gradient checkpointing, on
rendered pictures of 512 x 512 pixels with their explanations: pathor1's encoding, packing, loss and DeepSpeed engine in
one process, without Ray, the stream and checkpoints. On one GPU the ZeRO stages spread nothing; what differs is how
DeepSpeed lays out weights and gradients, so that this is what a stage costs by itself.

step s       Seconds of a step, the median of all but the first `WARM`.
tok/s        Tokens of samples (image tokens among them, padding not) over these seconds.
MFU          The operations that the model needs (`benchmarks/gpu/flops.py`) over the seconds and the GPU's peak.
GB           The most that torch had allocated, and that the whole GPU had in use.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import flops
import real_size
import watch
from rl import PEAKS

HERE = Path(__file__).resolve()
WARM = 2


def make(folder: Path, arguments: argparse.Namespace) -> None:
    """The samples, and the model where it is not there."""
    from pathor1.data.rendered import render
    from pathor1.model import tiny

    train = render(folder / "taught", seed=0, counts={"warm_start": arguments.batch}, size=arguments.picture)
    if not (folder / "model").exists():
        if arguments.model_size == "tiny":
            tiny.make(folder / "model", [train["warm_start"]])
        else:
            real_size.write(folder / "model", arguments.model_size, [train["warm_start"]])


def alone() -> None:
    """Makes this process a group of one rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in rank.items()})


def measure(folder: Path, stage: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One ZeRO stage, in this process."""
    import torch
    from transformers import AutoModelForImageTextToText

    from pathor1.recipe import Model
    from pathor1.samples import read
    from pathor1.supervised import engine
    from pathor1.supervised.batches import Collate
    from pathor1.supervised.encode import IGNORED, encode, load_processor
    from pathor1.supervised.loss import AssistantLoss
    from pathor1.supervised.packing import Layout, pack
    from pathor1.training import Stage

    alone()
    gpu = torch.cuda.is_available()
    model = Model(path=str(folder / "model"), dtype="bfloat16" if gpu else "float32", attention=arguments.attention)
    training = Stage(
        steps=arguments.steps,
        batch_size=arguments.batch,
        zero_stage=stage,
        max_tokens=arguments.row_tokens,
        max_tokens_per_pass=arguments.tokens_per_pass,
        offload=["optimizer"] if arguments.offload else [],
    )
    processor = load_processor(model.path)
    samples = [
        encode(sample, processor, system_prompt="none", max_tokens=training.max_tokens)
        for sample in read(folder / "taught/warm_start.parquet")
    ]
    lengths = [len(sample.input_ids) for sample in samples]
    collate = Collate.of(processor)
    (passes,) = pack(lengths, Layout.of(model, training), 1)
    batches = [collate([[(samples[number], 0) for number in row] for row in rows]) for rows in passes]
    learned = sum(int((sample.labels != IGNORED).sum()) for sample in samples)
    module = AutoModelForImageTextToText.from_pretrained(
        model.path, dtype=getattr(torch, model.dtype), attn_implementation=model.attention
    )
    module.train()
    module.gradient_checkpointing_enable({"use_reentrant": False})
    shape = flops.shape(module.config)
    trained = engine.build(AssistantLoss(module, processor.image_processor), model, training, gpu=gpu)
    seconds: list[float] = []
    losses: list[float] = []
    with watch.Watch() as seen:
        for _ in range(training.steps):
            begun = time.monotonic()
            done = engine.step(trained, batches, learned=learned, sources=1)  # reads the losses: it has ended
            seconds.append(time.monotonic() - begun)
            losses.append(sum(done.losses) / learned)
    step = statistics.median(seconds[WARM:] or seconds)
    needed = sum(
        flops.training(
            shape,
            tokens=length,
            predicted=int((sample.labels != IGNORED).sum()),
            patches=len(sample.patches),
        )
        for length, sample in zip(lengths, samples, strict=True)
    )
    name = watch.gpu() or ""
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    places = sum(batch.input_ids.numel() for batch in batches)
    return {
        "zero_stage": stage,
        "step_s": round(step, 3),
        "seconds": [round(each, 3) for each in seconds],
        "loss": [round(each, 4) for each in losses],
        "tokens": sum(lengths),
        "padding_share": round(1 - sum(lengths) / places, 3),
        "tokens_per_s": round(sum(lengths) / step, 1),
        "tflops": round(needed / step / 1e12, 2),
        "mfu": round(needed / step / peak, 4) if peak else None,
        "allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if gpu else None,
        "gpu": watch.during(seen.looks, [(0, float("inf"))]),
    }


def line(result: dict[str, Any]) -> str:
    """Of the table."""
    told = {name: "-" if value is None else value for name, value in {**result, **result["gpu"]}.items()}
    return (
        "ZeRO {zero_stage}  step {step_s} s  {tokens_per_s} tok/s  padding {padding_share}  MFU {mfu}  busy {busy}  "
        "allocated {allocated_gb} GB  in use {memory_gb} GB"
    ).format(**told)


def main() -> None:
    """Runs the benchmark, or one stage of it; exit code 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-size", choices=("tiny", *real_size.TEXT), default="3b")
    parser.add_argument("--zero", type=int, nargs="+", choices=(1, 2, 3), default=(2, 3))
    parser.add_argument("--batch", type=int, default=32, help="samples a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--picture", type=int, default=512, help="pixels a side")
    parser.add_argument("--row-tokens", type=int, default=2048, help="max_tokens: of a packed row")
    parser.add_argument("--tokens-per-pass", type=int, default=16384, help="max_tokens_per_pass")
    parser.add_argument("--attention", choices=("sdpa", "flash_attention_2"), default="sdpa", help="model.attention")
    parser.add_argument("--offload", action="store_true", help="the optimizer's state lies in the node's memory")
    parser.add_argument("--folder", type=Path, help="where all is kept; a model that is there already is taken")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    gpu = watch.gpu()
    if gpu is None and not arguments.dry_run:
        print(
            "benchmarks/gpu/supervised.py measures on a GPU, and torch finds none here: nothing was run",
            file=sys.stderr,
        )
        sys.exit(2)
    if arguments.one:
        stage, file = arguments.one
        Path(file).write_text(json.dumps(measure(arguments.folder, int(stage), arguments)))
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        make(folder, arguments)
        for stage in arguments.zero:
            file = folder / f"zero{stage}.json"
            command = [
                sys.executable,
                str(HERE),
                *sys.argv[1:],
                "--folder",
                str(folder),
                "--one",
                str(stage),
                str(file),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"ZeRO {stage}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
            results.append(json.loads(file.read_text()))
            print(line(results[-1]), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps({"gpu": gpu, "runs": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
