"""Hugging Face's Trainer on a recipe of `pathor1 sft`: its data in the same order, its model and its numbers.

    python hf_trainer.py RECIPE LOSSES

It gets what its users give it: a Dataset that decodes a picture and calls the model's processor, and a collator that
pads. It prints a line behind each step, and writes the losses to a file, as JSON.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainerCallback, TrainingArguments

from pathor1.data.plan import plan
from pathor1.data.row_groups import row_groups
from pathor1.prompts import taught_messages
from pathor1.samples import Sample, read
from pathor1.stage import StageRecipe, load
from pathor1.supervised.encode import IGNORED
from pathor1.supervised.engine import BETAS, MAX_GRADIENT_NORM


def order(train: str, count: int, seed: int) -> list[int]:
    """The rows that pathor1's stream hands out first, by their numbers in the file."""
    groups = row_groups([train])
    first = np.cumsum([0, *(group.rows for group in groups)])
    found: list[int] = []
    epoch = 0
    while len(found) < count:
        for block in plan(groups, seed=seed, epoch=epoch, shuffle=True):
            rows = np.concatenate([np.arange(group.rows) + first[group.index] for group in block.groups])
            found += rows[block.order()].tolist()
        epoch += 1
    return found[:count]


class Questions(Dataset[dict[str, Any]]):
    """Samples as the processor makes them."""

    def __init__(self, samples: Sequence[Sample], rows: Sequence[int], processor: Any) -> None:
        self.samples, self.rows, self.processor = samples, rows, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[self.rows[index]]
        text = self.processor.apply_chat_template(taught_messages(sample, "none"), tokenize=False)
        pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in sample.images]
        return dict(self.processor(text=[text], images=pictures or None, return_tensors="pt"))


class Pad:
    """Samples -> a batch, with labels on what the assistant says and on the token that ends it."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad = tokenizer.pad_token_id
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.says = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        ids = [feature["input_ids"][0].tolist() for feature in features]
        length = max(map(len, ids))
        kinds = [feature["mm_token_type_ids"] for feature in features]
        images = [feature for feature in features if "pixel_values" in feature]
        return {
            "input_ids": torch.tensor([each + [self.pad] * (length - len(each)) for each in ids]),
            "attention_mask": torch.tensor([[1] * len(each) + [0] * (length - len(each)) for each in ids]),
            "labels": torch.tensor([self._labels(each) + [IGNORED] * (length - len(each)) for each in ids]),
            "mm_token_type_ids": torch.cat(
                [torch.nn.functional.pad(each, (0, length - each.shape[1])) for each in kinds]
            ),
            "pixel_values": torch.cat([feature["pixel_values"] for feature in images]),
            "image_grid_thw": torch.cat([feature["image_grid_thw"] for feature in images]),
        }

    def _labels(self, ids: list[int]) -> list[int]:
        found = [IGNORED] * len(ids)
        starts = range(len(self.says), len(ids) + 1)
        start = next(place for place in starts if ids[place - len(self.says) : place] == self.says)
        stop = ids.index(self.end, start) + 1
        found[start:stop] = ids[start:stop]
        return found


class AsOurs(Trainer):
    """Trainer without its shuffling, and with weight decay on all weights, as `pathor1 sft` has."""

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(dataset or self.train_dataset)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]


class Tell(TrainerCallback):
    """A line behind each step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        print(f"step {state.global_step}", flush=True)


def settings(recipe: StageRecipe) -> TrainingArguments:
    """The recipe's numbers, as Trainer has them."""
    training = recipe.training
    return TrainingArguments(
        output_dir=str(Path(recipe.runs_dir) / "trainer"),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=MAX_GRADIENT_NORM,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": training.final_learning_rate_fraction},
        dataloader_num_workers=recipe.data.workers,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        seed=recipe.seed,
    )


def main() -> None:
    """Trains, and writes the losses."""
    recipe, out = load(sys.argv[1]), Path(sys.argv[2])
    processor = AutoProcessor.from_pretrained(recipe.model.path)
    (train,) = recipe.data.train
    rows = order(train, recipe.training.steps * recipe.training.batch_size, recipe.seed)
    trainer = AsOurs(
        model=AutoModelForImageTextToText.from_pretrained(recipe.model.path, dtype=torch.float32),
        args=settings(recipe),
        train_dataset=Questions(list(read(train)), rows, processor),
        data_collator=Pad(processor.tokenizer),
        callbacks=[Tell()],
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    out.write_text(json.dumps(losses), encoding="utf-8")


if __name__ == "__main__":
    main()
