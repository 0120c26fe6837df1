"""Batches of a supervised stage: the stream of samples, encoded by Ray Data's workers, as tensors for one rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pathor1.data.plan import plan
from pathor1.data.read_block import ReadBlock
from pathor1.data.row_groups import expand, row_groups
from pathor1.recipe import Recipe, WarmStart
from pathor1.samples import TASKS
from pathor1.supervised.encode import IGNORED, EncodeRows

if TYPE_CHECKING:
    import torch


def dataset(recipe: Recipe, stage: WarmStart) -> Any:
    """The samples of all steps, epoch after epoch, each epoch in an order of its own, as rows of `encode.SCHEMA`.

    A pure function of the files and the seed: whoever reads it gets the same rows in the same order.
    """
    from pathor1.data import block_source

    groups = row_groups(expand(stage.data))
    # One epoch more than the steps take: unusable samples are left out, and ranks get equal shares.
    epochs = math.ceil(stage.steps * stage.batch_size / sum(group.rows for group in groups)) + 1
    blocks = [block for epoch in range(epochs) for block in plan(groups, seed=recipe.seed, epoch=epoch, shuffle=True)]
    encode = EncodeRows(model=stage.model, system_prompt=recipe.data.system_prompt, max_tokens=stage.max_tokens)
    pixels = {"min_pixels": recipe.data.min_pixels, "max_pixels": recipe.data.max_pixels}
    reads = [ReadAndEncode(read=ReadBlock(block=block, tasks=TASKS, **pixels), encode=encode) for block in blocks]
    return block_source.dataset(reads, name="samples_warm_start", workers=recipe.data.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAndEncode:
    """One block -> rows of `encode.SCHEMA`: the function that one of Ray Data's workers runs."""

    read: ReadBlock
    encode: EncodeRows

    def __call__(self) -> Iterator[pa.Table]:
        for rows in self.read():
            yield self.encode(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """b samples of at most n tokens, with p patches of d values and m pictures in all."""

    input_ids: torch.Tensor  # [b, n] int64, padded on the right
    attention_mask: torch.Tensor  # [b, n] int64: 1 where a token is
    labels: torch.Tensor  # [b, n] int64: IGNORED where nothing is learned
    image_mask: torch.Tensor  # [b, n] int64: 1 where an image token is
    patches: torch.Tensor  # [p, d] uint8
    grids: torch.Tensor  # [m, 3] int64
    dropped: int  # samples that were left out on the way
    problem: str | None  # why the last of them was

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name."""
        names = ("input_ids", "attention_mask", "labels", "image_mask", "patches", "grids")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collate:
    """Rows of `encode.SCHEMA` -> a Batch."""

    pad_token: int
    image_token: int

    def __call__(self, table: pa.Table) -> Batch:
        import torch

        ids = [np.asarray(row, dtype=np.int64) for row in table["input_ids"].to_pylist()]
        labels = [np.asarray(row, dtype=np.int64) for row in table["labels"].to_pylist()]
        grids = np.concatenate([np.asarray(row, dtype=np.int64) for row in table["grids"].to_pylist()]).reshape(-1, 3)
        count = int(grids.prod(axis=1).sum())
        values = np.frombuffer(bytearray().join(table["patches"].to_pylist()), dtype=np.uint8)
        shape = len(ids), max(map(len, ids))
        padded = np.full(shape, self.pad_token)
        wanted = np.full(shape, IGNORED)
        present = np.zeros(shape, dtype=np.int64)
        for row, (tokens, targets) in enumerate(zip(ids, labels, strict=True)):
            padded[row, : len(tokens)] = tokens
            wanted[row, : len(tokens)] = targets
            present[row, : len(tokens)] = 1
        problems = [text for text in table["problem"].to_pylist() if text is not None]
        return Batch(
            input_ids=torch.from_numpy(padded),
            attention_mask=torch.from_numpy(present),
            labels=torch.from_numpy(wanted),
            image_mask=torch.from_numpy((padded == self.image_token).astype(np.int64)),
            patches=torch.from_numpy(values.reshape(count, len(values) // max(count, 1))),
            grids=torch.from_numpy(grids),
            dropped=sum(table["dropped"].to_pylist()),
            problem=problems[-1] if problems else None,
        )
