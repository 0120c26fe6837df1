"""Joint embeddings of pictures and captions by any open_clip model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pathor1.checkpoints import model_of
from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.errors import DataError, ModelError

Row = dict[str, Any]


def load_open_clip(model: str, checkpoint: str | None) -> tuple[Any, Any, Any]:
    """An open_clip model in evaluation mode, its transform of pictures, and its tokenizer.

    model: a name that open_clip knows; a run of `pathor1 clip train`, or a checkpoint of one; or a folder with
    `open_clip_config.json` and weights. checkpoint: weights beside it; without one a named model has random weights.
    Raises ModelError for what is none of these, RunError for a run without a checkpoint.
    """
    import open_clip

    folder = Path(model_of(str(Path(model).expanduser())))
    name = f"local-dir:{folder}" if folder.is_dir() else model
    if not folder.is_dir() and model not in open_clip.list_models():
        raise ModelError(f"{model}: neither a folder nor a model that open_clip knows, such as ViT-B-16")
    try:
        made, _, transform = open_clip.create_model_and_transforms(name, pretrained=checkpoint)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint or model}: no weights that open_clip can load: {_line(error)}") from error
    return made.eval(), transform, tokenizer


class Embed:
    """Rows with `image` and a caption -> rows with `id` and `embedding`, on the GPU where there is one.

    An embedding is [sqrt(w) picture, sqrt(1 - w) caption], each of length 1: the square of the distance of two is then
    the weighted mean of those of their pictures and captions.
    """

    def __init__(
        self, model: str, checkpoint: str | None, picture_weight: float, batch_size: int, caption: str
    ) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        made, self.transform, self.tokenizer = load_open_clip(model, checkpoint)
        self.model: Any = made.to(self.device)
        self.weights = math.sqrt(picture_weight), math.sqrt(1 - picture_weight)
        self.batch_size, self.caption = batch_size, caption

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        """A row whose picture cannot be read is left out."""
        while batch := list(islice(rows, self.batch_size)):
            yield from self._embed(batch)

    def _embed(self, rows: list[Row]) -> Iterator[Row]:
        import torch

        kept: list[Row] = []
        pictures: list[Any] = []
        for row in rows:
            try:
                pictures.append(self.transform(decode(row["image"], min_pixels=1, max_pixels=LARGEST_PIXELS)))
            except DataError:
                continue
            kept.append(row)
        if not kept:
            return
        with torch.inference_mode():
            texts = self.tokenizer([row[self.caption] for row in kept]).to(self.device)
            seen = self.model.encode_image(torch.stack(pictures).to(self.device), normalize=True)
            said = self.model.encode_text(texts, normalize=True)
            joint = torch.cat([self.weights[0] * seen, self.weights[1] * said], dim=1).float().cpu().numpy()
        for row, vector in zip(kept, joint, strict=True):
            yield {"id": row["id"], "embedding": vector.tolist()}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
