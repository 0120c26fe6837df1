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
# Pictures that the image processor is given at a time have about so many pixels, or are one sample's: a call of it
# costs more than a small picture's work, and of large ones the numbers of a few fill a worker's memory.
PIXELS_AT_A_TIME = 1 << 20

# [p, d] RGB values of a picture's patches, and [3] how many there are in time, height and width.
Patches = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


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
    (done,) = encode_all(
        [sample],
        processor,
        system_prompt=system_prompt,
        max_tokens=max_tokens,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
    if isinstance(done, DataError):
        raise done
    return done


def encode_all(
    samples: Sequence[Sample],
    processor: Any,
    *,
    system_prompt: SystemPrompt,
    max_tokens: int,
    min_pixels: int,
    max_pixels: int,
) -> list[Encoded | DataError]:
    """As `encode`, of many samples in fewer calls of the processor; in the place of one that cannot be used, why."""
    chats = [_chat(sample, processor, system_prompt) for sample in samples]
    pictures = _pictures(samples, processor, min_pixels=min_pixels, max_pixels=max_pixels)
    texts = [text for chat in chats if not isinstance(chat, DataError) for text, _ in chat]
    tokens = iter(processor.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
    found: list[Encoded | DataError] = []
    for sample, chat, seen in zip(samples, chats, pictures, strict=True):
        if isinstance(chat, DataError):
            found.append(chat)
            continue
        said = [(next(tokens), is_said) for _, is_said in chat]
        found.append(seen if isinstance(seen, DataError) else _encoded(sample, said, seen, processor, max_tokens))
    return found


def _chat(sample: Sample, processor: Any, system_prompt: SystemPrompt) -> list[tuple[str, bool]] | DataError:
    try:
        return list(pieces(taught_messages(sample, system_prompt), processor))
    except DataError as error:
        return error


def _encoded(
    sample: Sample, said: Sequence[tuple[list[int], bool]], seen: Sequence[Patches], processor: Any, max_tokens: int
) -> Encoded | DataError:
    """said: the tokens of the chat's pieces, True = the assistant's; seen: the pictures' patches."""
    merged = processor.image_processor.merge_size**2
    image_pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    image_tokens = iter([int(grid.prod()) // merged for _, grid in seen])
    ids: list[int] = []
    labels: list[int] = []
    for piece, is_said in said:
        for token in piece:
            # One placeholder a picture in the text, as many as it has merged patches in the model.
            count = next(image_tokens, 0) if token == image_pad else 1
            ids += [token] * count
            labels += [token if is_said and token != image_pad else IGNORED] * count
    if len(ids) > max_tokens:
        return DataError(f"{sample.id}: {len(ids)} tokens, where max_tokens allows {max_tokens}")
    labels[0] = IGNORED  # nothing comes before it that it could be learned from
    return Encoded(
        input_ids=np.asarray(ids, dtype=np.int32),
        labels=np.asarray(labels, dtype=np.int32),
        patches=np.concatenate([patches for patches, _ in seen]) if seen else np.zeros((0, 0), dtype=np.uint8),
        grids=np.stack([grid for _, grid in seen]) if seen else np.zeros((0, 3), dtype=np.int64),
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
        prompt = rendered(chat[:index], asks=True)
        answered = whole if index == len(chat) - 1 else rendered(chat[: index + 1])
        if not (whole.startswith(answered) and answered.startswith(prompt)):
            raise DataError("the model's chat template rewrites earlier turns; this cannot be trained on")
        yield whole[done : len(prompt)], False
        end = answered.index(processor.tokenizer.eos_token, len(prompt)) + len(processor.tokenizer.eos_token)
        yield whole[len(prompt) : end], True
        done = end
    if done < len(whole):
        yield whole[done:], False


def _pictures(
    samples: Sequence[Sample], processor: Any, *, min_pixels: int, max_pixels: int
) -> list[list[Patches] | DataError]:
    """The pictures of each sample as patches, or why one of them cannot be had."""
    found: list[list[Patches] | DataError] = []
    waiting: list[tuple[list[Patches], Image]] = []  # where a picture's patches go
    pixels = 0

    def cut() -> None:
        for (place, _), patches in zip(waiting, _patches([picture for _, picture in waiting], processor), strict=True):
            place.append(patches)
        waiting.clear()

    for sample in samples:
        try:
            pictures = [decode(image, min_pixels=min_pixels, max_pixels=max_pixels) for image in sample.images]
        except DataError as error:
            found.append(DataError(f"{sample.id}: {error}"))
            continue
        place: list[Patches] = []
        found.append(place)
        waiting += [(place, picture) for picture in pictures]
        pixels += sum(picture.width * picture.height for picture in pictures)
        if pixels >= PIXELS_AT_A_TIME:
            cut()
            pixels = 0
    cut()
    return found


def _patches(pictures: Sequence[Image], processor: Any) -> list[Patches]:
    """Patches as the model's image processor cuts them, before it rescales and normalises."""
    if not pictures:
        return []
    done = processor.image_processor(images=list(pictures), do_rescale=False, do_normalize=False, return_tensors="pt")
    values = done["pixel_values"].numpy().round().clip(0, 255).astype(np.uint8)
    grids = done["image_grid_thw"].numpy().astype(np.int64)
    return list(zip(np.split(values, grids.prod(axis=1).cumsum()[:-1]), grids, strict=True))


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
        rows = table.to_pylist()
        usable = [from_row(row) for row in rows if row["problem"] is None]
        encoded = iter(
            encode_all(
                usable,
                processor,
                system_prompt=self.system_prompt,
                max_tokens=self.max_tokens,
                min_pixels=self.min_pixels,
                max_pixels=self.max_pixels,
            )
        )
        done = [self._row(row, next(encoded) if row["problem"] is None else None) for row in rows]
        return pa.Table.from_pylist(done, schema=SCHEMA)

    def _row(self, row: Mapping[str, Any], done: Encoded | DataError | None) -> dict[str, Any]:
        told = {name: row[name] for name in ("id", "source", "epoch", "position", "problem")}
        if done is None:
            return {**told, **_NOTHING}
        if isinstance(done, DataError):
            return {**told, **_NOTHING, "problem": str(done).removeprefix(f"{row['id']}: ")}
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
