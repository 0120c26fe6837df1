"""Rows of samples -> cut pictures and tokens: what Ray Data's workers do, so that training processes get numbers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from pathor1.clip.models import Found, tokenizer
from pathor1.data.dealer import EncodedRow
from pathor1.data.images import decode_for
from pathor1.errors import DataError

# Of a cut, its width to its height or its height to its width at least. [torchvision's RandomResizedCrop]
NARROWEST = 3 / 4

# full: as of a `PairRow`; pixels: height x width x 3 bytes; tokens: of the caption, without the places behind its end.
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("epoch", pa.int64()),
        pa.field("position", pa.int64()),
        pa.field("problem", pa.string()),
        pa.field("full", pa.bool_()),
        pa.field("pixels", pa.binary()),
        pa.field("tokens", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow(EncodedRow):
    """A row of a block of `SCHEMA`. full: its caption fills the context, and may have been cut."""

    full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """A rank's pairs of a step. full: captions that fill the context, of the whole step."""

    rows: Sequence[PairRow]
    full: int


def split(rows: Sequence[PairRow], ranks: int) -> list[Pairs]:
    """A step's pairs -> those of each rank, to each as many."""
    each = len(rows) // ranks
    full = sum(row.full for row in rows)
    return [Pairs(rows=rows[rank * each : (rank + 1) * each], full=full) for rank in range(ranks)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodePairs:
    """A table of `STREAM_SCHEMA`, whose pictures are encoded -> one of `SCHEMA`.

    crop: smallest share of a picture's area that is kept. left_out: ids that are passed over. How a picture is cut is a
    function of the seed, the epoch and the sample.
    """

    model: Found
    crop: float
    seed: int
    left_out: frozenset[str] = frozenset()

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [self._row(row) for row in table.to_pylist() if row["id"] not in self.left_out]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        told = {name: row[name] for name in ("id", "source", "epoch", "position", "problem")}
        if told["problem"] is None and len(row["images"]) != 1:
            told["problem"] = f"{len(row['images'])} pictures, where one is needed"
        nothing = {"full": False, "pixels": None, "tokens": None}
        if told["problem"] is not None:
            return told | nothing
        try:
            pixels = self._pixels(row)
        except DataError as error:
            return told | nothing | {"problem": str(error)}
        tokens = self._tokens(row["answer"])
        return told | {"full": len(tokens) == self.model.context_length, "pixels": pixels, "tokens": tokens}

    def _pixels(self, row: dict[str, Any]) -> bytes:
        """Raises DataError for a picture that cannot be read."""
        import torch

        # No cut is enlarged that has the pixels: one is up to a third longer than wide, or wider than long, so that its
        # sides are at least this part of the picture's shorter side.
        narrowest = math.sqrt(NARROWEST * self.crop)
        picture = decode_for(row["images"][0], math.ceil(max(self.model.image_size) / narrowest))
        # Not `torch.manual_seed`, which notes the call, with its stack, for a GPU that may come.
        torch.default_generator.manual_seed(hash((self.seed, row["epoch"], zlib.crc32(row["id"].encode()))) % (1 << 63))
        return np.asarray(_cut(self.model.image_size, self.crop)(picture), dtype=np.uint8).tobytes()

    def _tokens(self, text: str) -> list[int]:
        tokens = _tokenizer(self.model.name, self.model)([text])[0].tolist()
        while len(tokens) > 1 and tokens[-1] == 0:
            tokens.pop()
        return tokens


@cache
def _cut(size: tuple[int, int], crop: float) -> Any:
    """open_clip's transform for training without its end, which makes numbers of three times the size."""
    from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose, Normalize

    whole = image_transform_v2(PreprocessCfg(size=size), is_train=True, aug_cfg=AugmentationCfg(scale=(crop, 1.0)))
    *steps, _to_tensor, normalize = whole.transforms
    assert isinstance(normalize, Normalize)
    return Compose(steps)


_TOKENIZERS: dict[str, Any] = {}


def _tokenizer(name: str, model: Found) -> Any:
    if name not in _TOKENIZERS:
        _TOKENIZERS[name] = tokenizer(model)
    return _TOKENIZERS[name]
