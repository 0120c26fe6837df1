"""Samples of a supervised stage, and what becomes of them on the way into a batch."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from small import Small

from pathor1.data.read_block import STREAM_SCHEMA
from pathor1.samples import Sample, Turn, to_row
from pathor1.supervised.batches import Batch, Collate, from_row
from pathor1.supervised.encode import SCHEMA, Encoded, EncodeRows


def png(width: int, height: int) -> bytes:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


MCQ = Sample(
    id="book/1",
    source="book",
    task="mcq",
    question="Which diagnosis fits?",
    options=("melanoma", "lymphoma"),
    answer="B",
    images=(png(84, 56),),
    explanation="Large cells, 病理.",
)
TALK = Sample(
    id="talk/1",
    source="talk",
    task="conversation",
    question="",
    answer="",
    images=(png(56, 56), png(84, 112)),
    turns=(
        Turn(role="user", text="What are they?"),
        Turn(role="assistant", text="Two naevi."),
        Turn(role="user", text="Why?"),
        Turn(role="assistant", text="They are even."),
    ),
)
CAPTION = Sample(
    id="atlas/1", source="atlas", task="caption", question="", answer="Two even naevi.", images=(png(56, 56),)
)
CASES = {
    "question": MCQ,
    "two pictures": replace(MCQ, images=(png(84, 56), png(56, 140))),
    "no picture": replace(MCQ, images=()),
    "yes or no": replace(MCQ, task="yes_no", options=None, answer="no"),
    "conversation": TALK,
    "caption": CAPTION,
    "it begins": replace(
        TALK,
        images=(),
        turns=(Turn(role="system", text="Be brief."), Turn(role="assistant", text="Ask me."), *(TALK.turns or ())),
    ),
    "it ends with the user": replace(TALK, turns=(*(TALK.turns or ()), Turn(role="user", text="Thank you."))),
}


def processed(chat: list[dict[str, Any]], sample: Sample, processor: Any, *, asks: bool) -> dict[str, Any]:
    """What the processor makes of the same chat."""
    text = processor.apply_chat_template(chat, add_generation_prompt=asks, tokenize=False)
    pictures = [Image.open(io.BytesIO(data)) for data in sample.images]
    return dict(processor(text=[text], images=pictures or None, return_tensors="np"))


def table(*samples: Sample, problems: dict[str, str] | None = None) -> pa.Table:
    """Rows as the stream hands them on."""
    rows = [
        {**to_row(sample), "epoch": 0, "position": place, "problem": (problems or {}).get(sample.id)}
        for place, sample in enumerate(samples)
    ]
    return pa.Table.from_pylist(rows, schema=STREAM_SCHEMA)


def rows_of(small: Small, *samples: Sample, limit: int = 500, problems: dict[str, str] | None = None) -> pa.Table:
    encode = EncodeRows(
        model=str(small.model), system_prompt="none", max_tokens=limit, min_pixels=1, max_pixels=1 << 20
    )
    done = encode(table(*samples, problems=problems))
    assert done.schema.equals(SCHEMA)
    return done


def encoded(small: Small, *samples: Sample, **values: Any) -> list[Encoded]:
    """The samples as they come out of a table."""
    table = rows_of(small, *samples, **values)
    return [from_row(table, index) for index in range(table.num_rows)]


def batch(small: Small, processor: Any, *samples: Sample, packed: bool = False) -> Batch:
    """The samples as one batch, each of source 0 in a row of its own, or all in one; padded with `<|vision_pad|>`."""
    made = [(sample, 0) for sample in encoded(small, *samples)]
    collate = replace(Collate.of(processor), pad_token=processor.tokenizer.convert_tokens_to_ids("<|vision_pad|>"))
    return collate([made] if packed else [[sample] for sample in made])
