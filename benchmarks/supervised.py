"""Samples a second, and for each second of CPU: `pathor1 sft` against Hugging Face's Trainer, and what both learn.

    .venv/bin/python benchmarks/supervised.py --rounds 5 --out supervised.json

The same small Qwen2.5-VL, the same rendered questions in the same order, the same AdamW, schedule and clipping,
float32, one process that trains and one that prepares samples; torch has as many threads in both. They take turns.
Steps count from `--warm` on: before, ours uses up what was read ahead while it started.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from contestants import HERE, ROOT
from rates import Round, lines_of, losses_of, rated, table, watch, write

SEED = 3
LAST = 10  # steps over which losses are shown
SIZES: dict[str, dict[str, int]] = {
    "small": {},  # 0.7 million parameters: beside the model's passes, what is around them counts
    "large": {"hidden": 384, "layers": 8, "vision_hidden": 192, "vision_layers": 4},
}
RECIPE = """
name = "bench"
runs_dir = "FOLDER/runs"
seed = 3

[model]
path = "FOLDER/model"
dtype = "float32"
gradient_checkpointing = false

[data]
train = ["FOLDER/data/warm_start.parquet"]
system_prompt = "none"
min_pixels = 3136
max_pixels = 3136
workers = 1

[sft]
steps = STEPS
batch_size = BATCH
learning_rate = 1e-3
warmup_steps = 5
max_tokens = 160
save_every = 100000

[cluster]
accelerator = "cpu"
accelerators_per_node = 1
"""


def prepare(folder: Path, steps: int, batch: int, size: str = "small") -> Path:
    """The questions, the model, and the recipe, from which Trainer's settings are read too."""
    from pathor1.data.rendered import render
    from pathor1.model.tiny import make

    train = render(folder / "data", seed=SEED, counts={"warm_start": max(256, steps * batch // 2)})["warm_start"]
    make(folder / "model", [train], seed=SEED, **SIZES[size])
    path = folder / "recipe.toml"
    text = RECIPE.replace("FOLDER", str(folder)).replace("STEPS", str(steps)).replace("BATCH", str(batch))
    path.write_text(text, encoding="utf-8")
    return path


def ours(recipe: Path, arguments: argparse.Namespace, number: int) -> Round:
    """A run of `pathor1 sft`."""
    runs = recipe.parent / f"runs-{number}"
    command = [sys.executable, "-m", "pathor1.cli", "sft", str(recipe), "--set", f"runs_dir={runs}"]
    metrics = runs / "bench/metrics.jsonl"
    threads = {"OMP_NUM_THREADS": str(arguments.threads)}
    looks = watch(command, recipe.parent / "ours.log", lambda: lines_of(metrics), **threads)
    return rated("pathor1", looks, losses_of(metrics), warm=arguments.warm, batch=arguments.batch)


def theirs(recipe: Path, arguments: argparse.Namespace, number: int) -> Round:
    """A run of Trainer."""
    log, losses = recipe.parent / "theirs.log", recipe.parent / "losses.json"
    command = [sys.executable, str(HERE / "peers/hf_trainer.py"), str(recipe), str(losses)]
    variables = {"OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    looks = watch(command, log, lambda: log.read_bytes().count(b"\nstep "), **variables)
    return rated("Trainer", looks, json.loads(losses.read_text()), warm=arguments.warm, batch=arguments.batch)


def main() -> None:
    """Makes the data, lets both take turns, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each (100)")
    parser.add_argument("--warm", type=int, default=40, help="of them, that do not count (40)")
    parser.add_argument("--batch", type=int, default=32, help="samples a step (32)")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the model (small)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (as many as there are cores)")
    parser.add_argument("--rounds", type=int, default=5, help="of both, in turn (5)")
    parser.add_argument("--out", type=Path, help="JSON file of all that was measured")
    arguments = parser.parse_args()
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as temporary:
        recipe = prepare(Path(temporary), arguments.steps, arguments.batch, arguments.size)
        for number in range(arguments.rounds):
            for run in (ours, theirs):
                rounds.append(run(recipe, arguments, number))
                print(f"{rounds[-1].name}: {rounds[-1].per_second:.1f} samples/s", file=sys.stderr, flush=True)
    print(table(rounds, "samples", last=LAST))
    apart = max(abs(one - other) for one, other in zip(rounds[0].losses, rounds[1].losses, strict=True))
    print(f"largest difference of the losses: {apart:.1e}")
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        write(rounds, settings, arguments.out)


if __name__ == "__main__":
    main()
