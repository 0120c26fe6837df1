"""Fine-tuning against Hugging Face's Trainer: samples a second, and whether both learn the same.

    .venv/bin/python benchmarks/supervised.py --steps 60 --rounds 2 --out supervised.json

The same small Qwen2.5-VL, the same rendered questions in the same order, the same AdamW, schedule and clipping,
float32, one training process and one process that prepares samples. Trainer gets what its users give it: a Dataset that
decodes a picture and calls the model's processor, and a collator that pads. Both take turns, each in a process of its
own; samples a second are counted from step `WARM` on.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pathor1.training import Stage

# Steps before what is measured: compilers, caches and pipelines have started by then.
WARM = 10
LOADERS = ("pathor1", "trainer")
SEED = 3

RECIPE = """
name = "NAME"
runs_dir = "RUNS"
seed = 3

[model]
path = "MODEL"
dtype = "float32"
gradient_checkpointing = false

[data]
train = ["TRAIN"]
system_prompt = "none"
min_pixels = 3136
max_pixels = 3136
workers = 1

[sft]
steps = STEPS
batch_size = BATCH
learning_rate = 1e-3
warmup_steps = 5
weight_decay = 0.01
max_tokens = 160
save_every = 100000

[cluster]
accelerator = "cpu"
accelerators_per_node = 1
"""


def make(folder: Path, samples: int) -> None:
    """The questions and the model."""
    from pathor1.data.rendered import render
    from pathor1.model.tiny import make as make_model

    train = render(folder / "data", seed=SEED, counts={"warm_start": samples})["warm_start"]
    make_model(folder / "model", [train], seed=SEED)


def recipe(folder: Path, name: str, steps: int, batch: int) -> Path:
    """pathor1's recipe; the Trainer's settings are read from it too."""
    values = {
        "NAME": name,
        "RUNS": folder / "runs",
        "MODEL": folder / "model",
        "TRAIN": folder / "data/warm_start.parquet",
        "STEPS": steps,
        "BATCH": batch,
    }
    text = RECIPE
    for word, value in values.items():
        text = text.replace(word, str(value))
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def order(train: Path, count: int) -> list[int]:
    """The rows that pathor1's stream hands out first, by their numbers in the file."""
    import numpy as np

    from pathor1.data.plan import plan
    from pathor1.data.row_groups import row_groups

    groups = row_groups([train])
    first = np.cumsum([0, *(group.rows for group in groups)])
    found: list[int] = []
    epoch = 0
    while len(found) < count:
        for block in plan(groups, seed=SEED, epoch=epoch, shuffle=True):
            rows = np.concatenate([np.arange(group.rows) + first[group.index] for group in block.groups])
            found += rows[block.order()].tolist()
        epoch += 1
    return found[:count]


def trainer(folder: Path, steps: int, batch: int) -> dict[str, Any]:
    """Hugging Face's Trainer: its losses, and when each step ended (s)."""
    import torch
    from PIL import Image
    from torch.utils.data import Dataset, Sampler, SequentialSampler
    from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainerCallback, TrainingArguments

    from pathor1.prompts import taught_messages
    from pathor1.samples import Sample, read
    from pathor1.stage import load
    from pathor1.supervised.encode import IGNORED
    from pathor1.supervised.engine import BETAS, MAX_GRADIENT_NORM

    training: Stage = load(recipe(folder, "trainer", steps, batch)).training
    processor = AutoProcessor.from_pretrained(folder / "model")
    train = folder / "data/warm_start.parquet"
    samples = list(read(train))
    rows = order(train, steps * batch)
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    says = processor.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]

    def labels(ids: list[int]) -> list[int]:
        """What the assistant says, and the token that ends it."""
        found = [IGNORED] * len(ids)
        place = next(place for place in range(len(ids)) if ids[place : place + len(says)] == says) + len(says)
        stop = ids.index(end, place) + 1
        found[place:stop] = ids[place:stop]
        assert ids[place - len(says)] == start
        return found

    class Questions(Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            sample: Sample = samples[rows[index]]
            text = processor.apply_chat_template(taught_messages(sample, "none"), tokenize=False)
            pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in sample.images]
            return dict(processor(text=[text], images=pictures or None, return_tensors="pt"))

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [feature["input_ids"][0].tolist() for feature in features]
        length = max(map(len, ids))
        pad = processor.tokenizer.pad_token_id
        images = [feature for feature in features if "pixel_values" in feature]
        return {
            "input_ids": torch.tensor([each + [pad] * (length - len(each)) for each in ids]),
            "attention_mask": torch.tensor([[1] * len(each) + [0] * (length - len(each)) for each in ids]),
            "labels": torch.tensor([labels(each) + [IGNORED] * (length - len(each)) for each in ids]),
            "mm_token_type_ids": torch.cat(
                [
                    torch.nn.functional.pad(feature["mm_token_type_ids"], (0, length - len(each)))
                    for feature, each in zip(features, ids, strict=True)
                ]
            ),
            "pixel_values": torch.cat([feature["pixel_values"] for feature in images]),
            "image_grid_thw": torch.cat([feature["image_grid_thw"] for feature in images]),
        }

    class InOrder(Trainer):
        def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
            return SequentialSampler(dataset or self.train_dataset)

    ended: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.monotonic())

    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=MAX_GRADIENT_NORM,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": training.final_learning_rate_fraction},
        dataloader_num_workers=1,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        seed=SEED,
    )
    made = InOrder(model=model, args=arguments, train_dataset=Questions(), data_collator=collate, callbacks=[Clock()])
    made.train()
    return {"losses": [row["loss"] for row in made.state.log_history if "loss" in row], "ended": ended}


def ours(folder: Path, steps: int, batch: int) -> dict[str, Any]:
    """`pathor1 sft`: the same of its metrics."""
    import shutil

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.rmtree(folder / "runs", ignore_errors=True)
    command = [sys.executable, "-m", "pathor1.cli", "sft", str(recipe(folder, "pathor1", steps, batch))]
    subprocess.run(command, check=True)
    events = EventAccumulator(str(folder / "runs/pathor1/tensorboard"))
    events.Reload()
    lines = (folder / "runs/pathor1/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ended = [event.wall_time for event in events.Scalars("loss")]
    return {"losses": [json.loads(line)["loss"] for line in lines], "ended": ended}


def child(arguments: argparse.Namespace) -> None:
    """One run of one of the two; what came of it goes to a file."""
    run = trainer if arguments.one == "trainer" else ours
    result = run(arguments.folder, arguments.steps, arguments.batch)
    (arguments.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one of the two as a process, and says what it took."""
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder)]
    command += ["--steps", str(arguments.steps), "--batch", str(arguments.batch)]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    counted = arguments.steps - WARM
    return {
        "name": name,
        "samples_per_second": counted * arguments.batch / (result["ended"][-1] - result["ended"][WARM - 1]),
        "seconds": time.monotonic() - started,
        "losses": result["losses"],
    }


def main() -> None:
    """Lets both take turns and prints a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file of all that was measured")
    parser.add_argument("--one", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        child(arguments)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, max(256, arguments.steps * arguments.batch // 2))
        rows = [measure(name, folder, arguments) for _ in range(arguments.rounds) for name in LOADERS]
    for row in rows:
        print(
            f"{row['name']:10} {row['samples_per_second']:8.1f} samples/s  {row['seconds']:6.1f} s in all  "
            f"loss {row['losses'][0]:.4f} -> {row['losses'][-1]:.4f}"
        )
    pairs = zip(rows[0]["losses"], rows[1]["losses"], strict=True)
    print(f"largest difference of the losses: {max(abs(a - b) for a, b in pairs):.1e}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
