"""Rows of encoded samples -> the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from pathor1.supervised.encode import IGNORED, Encoded
from pathor1.supervised.positions import positions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One forward pass: b rows of n places for tokens, with p patches of d values and m pictures in all.

    A row holds samples one behind the other, each with positions from 0, and padding on the right, with positions from
    0 too: transformers then lets no token attend to another sample's (`find_packed_sequence_indices`), nor to padding.
    Where no row holds more than one sample, positions go on through the padding, which no sample attends to, as it
    stands behind: transformers then makes no mask, and SDPA leaves out half of each row's square.

    Where none of its samples has a picture, a last column holds a blank one of a single token, which no sample attends
    to, either, and nobody learns: every rank runs the vision tower in every pass, at the same place. ZeRO 3 gathers
    weights as a pass comes to them, on all ranks together; and where a gradient were missing, the other ranks would
    wait.
    """

    input_ids: torch.Tensor  # [b, n] int64
    position_ids: torch.Tensor  # [4, b, n] int64: of the token in its sample, and in time, height and width
    labels: torch.Tensor  # [b, n] int64: IGNORED where nothing is learned, as on the first token of every sample
    sources: torch.Tensor  # [b, n] int64: which of the step's sources a token is of
    patches: torch.Tensor  # [p, d] uint8
    grids: torch.Tensor  # [m, 3] int64

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collate:
    """Rows of samples -> a Batch. merge, values_per_patch: of the image processor."""

    pad_token: int
    image_token: int
    merge: int
    values_per_patch: int

    @classmethod
    def of(cls, processor: Any) -> Self:
        """As a model's processor says."""
        tokenizer, image = processor.tokenizer, processor.image_processor
        return cls(
            pad_token=tokenizer.pad_token_id,
            image_token=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            merge=image.merge_size,
            values_per_patch=len(image.image_mean) * image.temporal_patch_size * image.patch_size**2,
        )

    def __call__(self, rows: Sequence[Sequence[tuple[Encoded, int]]]) -> Batch:
        """rows: the samples of each, every one with the number of its source. Without rows: padding alone.

        Raises DataError where a sample has not as many image tokens as its pictures.
        """
        import torch

        samples = [sample for row in rows for sample, _ in row]
        blank = not any(len(sample.grids) for sample in samples)
        length = max((sum(len(sample.input_ids) for sample, _ in row) for row in rows), default=2) + blank
        shape = max(len(rows), 1), length
        ids = np.full(shape, self.pad_token, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        sources = np.zeros(shape, dtype=np.int64)
        places = np.broadcast_to(np.arange(length), (4, *shape)).copy()
        packed = any(len(row) > 1 for row in rows)
        for number, row in enumerate(rows):
            start = 0
            for sample, source in row:
                here = slice(start, start + len(sample.input_ids))
                ids[number, here] = sample.input_ids
                labels[number, here] = sample.labels
                sources[number, here] = source
                is_image = sample.input_ids == self.image_token
                places[:, number, here] = positions(is_image, sample.grids, self.merge)
                start = here.stop
            if packed:
                places[:, number, start:] = np.arange(length - start)
        patches = [sample.patches for sample in samples if len(sample.patches)]
        grids = [sample.grids for sample in samples]
        if blank:
            ids[0, -1] = self.image_token
            if packed:
                places[:, :, -1] = 0
            patches = [np.zeros((self.merge**2, self.values_per_patch), dtype=np.uint8)]
            grids = [np.array([[1, self.merge, self.merge]])]
        return Batch(
            input_ids=torch.from_numpy(ids),
            position_ids=torch.from_numpy(places),
            labels=torch.from_numpy(labels),
            sources=torch.from_numpy(sources),
            patches=torch.from_numpy(np.concatenate(patches)),
            grids=torch.from_numpy(np.concatenate(grids)),
        )


def from_row(table: pa.Table, index: int) -> Encoded:
    """A sample of a table of `encode.SCHEMA`; the arrays are the table's own, where they can be."""
    row: Mapping[str, Any] = {name: table[name][index] for name in ("input_ids", "labels", "patches", "grids")}
    grids = row["grids"].values.to_numpy(zero_copy_only=False).reshape(-1, 3)
    values = np.frombuffer(row["patches"].as_buffer(), dtype=np.uint8)
    count = int(grids.prod(axis=1).sum())
    return Encoded(
        input_ids=row["input_ids"].values.to_numpy(zero_copy_only=False),
        labels=row["labels"].values.to_numpy(zero_copy_only=False),
        patches=values.reshape(count, len(values) // max(count, 1)),
        grids=grids,
    )
