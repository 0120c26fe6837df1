"""Sample -> token ids, labels and image patches: what a supervised step takes, made outside the training process."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL.Image import Image

from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.errors import DataError
from pathor1.prompts import SystemPrompt, taught_messages
from pathor1.samples import Sample, from_row

# The label of a position that is not learned; torch's cross entropy passes it over.
IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One sample as a model takes it: n tokens, p patches of d values, m pictures."""

    input_ids: npt.NDArray[np.int32]  # [n]
    labels: npt.NDArray[np.int32]  # [n]: the token itself where the assistant says it, else IGNORED
    patches: npt.NDArray[np.uint8]  # [p, d]: RGB values 0-255, not yet normalised: a quarter of their size as floats
    grids: npt.NDArray[np.int64]  # [m, 3]: patches in time, height and width


def encode(
    sample: Sample,
    processor: Any,
    *,
    system_prompt: SystemPrompt,
    max_tokens: int,
    min_pixels: int = 1,
    max_pixels: int = LARGEST_PIXELS,
) -> Encoded:
    """Tokens of the chat, with labels on what the assistant says: its turns and the token that ends each.

    Pictures are brought to a size within the budget of pixels. The chat is tokenised in pieces, cut where the
    assistant's turns begin and end, so that a prompt has the tokens that it has when the model is asked. Raises
    DataError for a chat longer than `max_tokens` or a picture that cannot be processed.
    """
    try:
        pictures = [decode(image, min_pixels=min_pixels, max_pixels=max_pixels) for image in sample.images]
    except DataError as error:
        raise DataError(f"{sample.id}: {error}") from error
    patches, grids = _patches(pictures, processor)
    merged = processor.image_processor.merge_size**2
    image_tokens = iter((grids.prod(axis=1) // merged).tolist())
    image_pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ids: list[int] = []
    labels: list[int] = []
    for text, is_said in pieces(taught_messages(sample, system_prompt), processor):
        for token in processor.tokenizer(text, add_special_tokens=False)["input_ids"]:
            # One placeholder a picture in the text, as many as it has merged patches in the model.
            count = next(image_tokens, 0) if token == image_pad else 1
            ids += [token] * count
            labels += [token if is_said and token != image_pad else IGNORED] * count
    if len(ids) > max_tokens:
        raise DataError(f"{sample.id}: {len(ids)} tokens, where max_tokens allows {max_tokens}")
    labels[0] = IGNORED  # nothing comes before it that it could be learned from
    return Encoded(
        input_ids=np.asarray(ids, dtype=np.int32),
        labels=np.asarray(labels, dtype=np.int32),
        patches=patches,
        grids=grids,
    )


def pieces(chat: Sequence[Mapping[str, Any]], processor: Any) -> Iterator[tuple[str, bool]]:
    """The chat's text by the model's own template, in pieces; True = the assistant says it, and is to learn it.

    What it says ends with the token that ends a turn. Raises DataError where the template rewrites earlier turns when
    later ones come (some drop earlier reasoning): then no prefix of the training text is what the model is asked.
    """

    def rendered(turns: Sequence[Mapping[str, Any]], *, asks: bool = False) -> str:
        return processor.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=asks)

    whole, done = rendered(chat), 0
    for index, turn in enumerate(chat):
        if turn["role"] != "assistant":
            continue
        prompt, answered = rendered(chat[:index], asks=True), rendered(chat[: index + 1])
        if not (whole.startswith(answered) and answered.startswith(prompt)):
            raise DataError("the model's chat template rewrites earlier turns; this cannot be trained on")
        yield whole[done : len(prompt)], False
        end = answered.index(processor.tokenizer.eos_token, len(prompt)) + len(processor.tokenizer.eos_token)
        yield whole[len(prompt) : end], True
        done = end
    if done < len(whole):
        yield whole[done:], False


def _patches(pictures: Sequence[Image], processor: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Patches as the model's image processor cuts them, before it rescales and normalises."""
    if not pictures:
        return np.zeros((0, 0), dtype=np.uint8), np.zeros((0, 3), dtype=np.int64)
    done = processor.image_processor(images=pictures, do_rescale=False, do_normalize=False, return_tensors="pt")
    values = done["pixel_values"].numpy()
    return values.round().clip(0, 255).astype(np.uint8), done["image_grid_thw"].numpy().astype(np.int64)


SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("epoch", pa.int64()),
        pa.field("position", pa.int64()),
        pa.field("problem", pa.string()),  # why the sample cannot be used, null = it can; then the rest is empty
        pa.field("tokens", pa.int32()),
        pa.field("learned", pa.int32()),  # of them
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("patches", pa.binary()),
        pa.field("grids", pa.list_(pa.int64())),
    ]
)
_NOTHING: dict[str, Any] = {"tokens": 0, "learned": 0, "input_ids": [], "labels": [], "patches": b"", "grids": []}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeRows:
    """Rows of the stream, whose pictures are encoded -> rows of `SCHEMA`, one for each: what Ray Data's workers run."""

    model: str
    system_prompt: SystemPrompt
    max_tokens: int
    min_pixels: int
    max_pixels: int

    def __call__(self, table: pa.Table) -> pa.Table:
        """A sample that cannot be used is handed on without content, with the reason."""
        import torch

        # As in a worker of torch's DataLoader: a picture is too small to be shared, and the CPUs are the training's.
        torch.set_num_threads(1)
        processor = load_processor(self.model)
        rows = [self._encoded(row, processor) for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _encoded(self, row: Mapping[str, Any], processor: Any) -> dict[str, Any]:
        told = {name: row[name] for name in ("id", "source", "epoch", "position", "problem")}
        if row["problem"] is not None:
            return {**told, **_NOTHING}
        try:
            done = encode(
                from_row(row),
                processor,
                system_prompt=self.system_prompt,
                max_tokens=self.max_tokens,
                min_pixels=self.min_pixels,
                max_pixels=self.max_pixels,
            )
        except DataError as error:
            return {**told, **_NOTHING, "problem": str(error).removeprefix(f"{row['id']}: ")}
        return {
            **told,
            "tokens": len(done.input_ids),
            "learned": int((done.labels != IGNORED).sum()),
            "input_ids": done.input_ids,
            "labels": done.labels,
            "patches": done.patches.tobytes(),
            "grids": done.grids.ravel(),
        }


@functools.cache
def load_processor(model: str) -> Any:
    """The model's tokenizer, image processor and chat template; once a process."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model)
