"""Questions to write into files of samples, and the order in which they are read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from formats import png
from PIL import Image

from pathor1.data.plan import Block
from pathor1.samples import Sample


def plain_png(side: int = 32, shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def some(name: str, **values: Any) -> Sample:
    question = Sample(
        id=name, source="s", task="mcq", question="?", options=("a", "b"), answer="B", images=(plain_png(),)
    )
    return replace(question, **values)


def numbered(number: int) -> Sample:
    """A question on a picture of its own, "s0", "s1" ..."""
    return Sample(
        id=f"s{number}",
        source="lab",
        task="mcq",
        question="Which?",
        options=("melanoma", "naevus"),
        answer="AB"[number % 2],
        images=(png(number, size=(28, 28)),),
    )


def rows_of(blocks: Sequence[Block]) -> list[tuple[str, int, int]]:
    """File, row group and row, of every row in the order in which they come out."""
    found: list[tuple[str, int, int]] = []
    for block in blocks:
        held = [(group.file, group.index, row) for group in block.groups for row in range(group.rows)]
        found.extend(held[place] for place in block.order().tolist())
    return found
