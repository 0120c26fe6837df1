"""Answers on disk: Parquet parts that appear whole or not at all, so that no question is answered twice.

A folder of parts is for one model, asked in one way, under one set of settings, which its `settings.json` has and of
which its name has a digest: answers that were made otherwise are never taken for these.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1 import files


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said. Example: Answer(id="a/1", number=0, text="<think>...", finish="stop", tokens=120)."""

    id: str  # of the question
    number: int  # of several sampled answers
    text: str
    finish: str  # "stop"; "length" = cut at the longest answer; "refused: ..." = a server did not answer it
    tokens: int  # generated


class Found(NamedTuple):
    """An answer, and how its question was asked: one of `questions.KINDS`."""

    kind: str
    answer: Answer


ANSWERS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
    ]
)


class Parts:
    """Rows of one schema in a folder of Parquet parts."""

    def __init__(self, folder: Path, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
        text = json.dumps(settings, indent=2, sort_keys=True)
        self.folder = folder.with_name(f"{folder.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}")
        self.schema = schema
        self._settings = text

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rows as one part."""
        if not rows:
            return
        if not (self.folder / "settings.json").exists():
            files.write(self.folder / "settings.json", self._settings + "\n")
        # Names that no other process takes: two evaluations at once are a waste, and no more than that.
        with files.replacing(self.folder / f"part-{uuid.uuid4().hex}.parquet") as part:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=self.schema), part, compression="zstd")

    def read(self) -> list[dict[str, Any]]:
        """The rows of all parts."""
        paths = sorted(self.folder.glob("part-*.parquet"))
        return [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]


class Answers:
    """The answers of one model, asked in one way. each: how many answers a question gets."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, each: int = 1) -> None:
        self._parts = Parts(folder, ANSWERS, settings)
        self.folder = self._parts.folder
        self.each = each

    def write(self, answers: Iterable[Answer]) -> None:
        """Writes them as one part: all answers of each question that is among them."""
        self._parts.write([asdict(answer) for answer in answers])

    def read(self) -> dict[str, list[Answer]]:
        """The answers by question, in the order of their numbers; questions with too few of them left out."""
        found: dict[str, dict[int, Answer]] = {}
        for row in self._parts.read():
            found.setdefault(row["id"], {})[row["number"]] = Answer(**row)
        return {
            id_: [numbered[number] for number in range(self.each)]
            for id_, numbered in found.items()
            if len(numbered) == self.each
        }

    def is_complete(self, questions: str) -> bool:
        """Whether all of these questions (`Listing.digest`) that can be asked so have been."""
        return (self.folder / f"complete-{questions}").exists()

    def complete(self, questions: str) -> None:
        """Notes that they have been, so that nobody reads pictures to find out."""
        files.write(self.folder / f"complete-{questions}", "")


def slug(name: str) -> str:
    """A model's name as that of a folder: "Qwen/Qwen2.5-VL-7B" -> "Qwen_Qwen2.5-VL-7B"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or "model"


def weights(model: str) -> list[tuple[str, int, int]]:
    """Which weights these are: name, bytes and time of the files of a model's folder; none for a hub's name.

    A model that is trained again in the same folder is another one. Times and not contents: 15 GB take long to read.
    """
    paths = sorted(path for path in Path(model).glob("*") if path.suffix in (".safetensors", ".bin", ".json"))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
