"""One record, `Sample`, from importers to reports, and its Arrow schema.

A Sample is one question (or caption, or conversation) with its images. Files of samples are Parquet with exactly
the columns of `SCHEMA`; this module is the only place that lists them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1 import places
from pathor1.errors import DataError
from pathor1.files import replacing

Task = Literal["mcq", "yes_no", "open", "caption", "conversation"]
TASKS: tuple[Task, ...] = ("mcq", "yes_no", "open", "caption", "conversation")
SUBFIELDS = ("histopathology", "gross", "ihc", "cytology", "fish")
LETTERS = "ABCDEF"
ROLES = ("system", "user", "assistant")

# One Parquet row group is what a reader holds in memory at once: 256 rows of ~100 KB images are ~25 MB.
ROW_GROUP_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a conversation. Example: Turn(role="user", text="What is shown?")."""

    role: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question about one or more pictures.

    Example: Sample(id="rendered/test/17", source="rendered", task="mcq", question="Which diagnosis fits?",
    options=("melanoma", "lymphoma"), answer="B", images=(b"\\x89PNG...",), subfield="histopathology", split="test")
    """

    id: str  # unique and stable: the same sample has the same id in every run
    source: str  # where it comes from: a public set's name, a book, "rendered", "ihc"
    task: Task
    question: str  # without the options; "" for captions and conversations
    options: tuple[str, ...] | None = None  # 2-6 texts in the order shown, mcq only
    answer: str  # a letter (mcq), "yes" or "no" (yes_no), else text; a caption sample's caption
    turns: tuple[Turn, ...] | None = None  # conversations only
    images: tuple[bytes, ...] = ()  # encoded pictures, in the order in which the question speaks of them
    subfield: str | None = None  # one of SUBFIELDS, None = not known
    split: str = "train"
    level: str | None = None  # easy, medium, hard; None = not graded
    explanation: str | None = None  # the reasoning a supervised stage teaches; None = there is none
    meta: Mapping[str, Any] | None = None  # whatever else the source knows; JSON text in the file
    license: str | None = None

    def problem(self) -> str | None:
        """What makes the sample unusable, or None. Pictures are not decoded here (see `pathor1.data.images`)."""
        if not self.id:
            return "the id is empty"
        if self.task not in TASKS:
            return f"task {self.task!r} is none of {', '.join(TASKS)}"
        if self.subfield is not None and self.subfield not in SUBFIELDS:
            return f"subfield {self.subfield!r} is none of {', '.join(SUBFIELDS)}"
        if self.task == "conversation":
            return _conversation_problem(self.turns)
        if self.task in ("mcq", "yes_no", "open") and not self.question.strip():
            return "the question is empty"
        if self.task == "mcq":
            return _mcq_problem(self.options, self.answer)
        if self.task == "yes_no" and self.answer not in ("yes", "no"):
            return f"the answer {self.answer!r} is neither 'yes' nor 'no'"
        if not self.answer.strip():
            return "the answer is empty"
        return None


def _mcq_problem(options: Sequence[str] | None, answer: str) -> str | None:
    if not options:
        return "a multiple-choice question without options"
    if not 2 <= len(options) <= len(LETTERS):
        return f"{len(options)} options, where 2 to {len(LETTERS)} can be lettered"
    if any(not option.strip() for option in options):
        return "an option is empty"
    if len({option.strip().casefold() for option in options}) != len(options):
        return "two options have the same text"
    letters = LETTERS[: len(options)]
    if answer not in tuple(letters):
        return f"the answer {answer!r} is none of the {len(options)} options ({letters[0]}-{letters[-1]})"
    return None


def _conversation_problem(turns: Sequence[Turn] | None) -> str | None:
    if not turns:
        return "a conversation without turns"
    for turn in turns:
        if turn.role not in ROLES:
            return f"a turn's role {turn.role!r} is none of {', '.join(ROLES)}"
    if not any(turn.role == "assistant" and turn.text.strip() for turn in turns):
        return "a conversation in which the assistant says nothing"
    return None


def _field(name: str, type_: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"doc": doc})


SCHEMA = pa.schema(
    [
        _field("id", pa.string(), "unique and stable over runs"),
        _field("source", pa.string(), "the set, book or generator it comes from"),
        _field("task", pa.string(), "mcq, yes_no, open, caption or conversation"),
        _field("question", pa.string(), "the question without its options"),
        _field("options", pa.list_(pa.string()), "2-6 option texts in the order shown; null unless mcq", nullable=True),
        _field("answer", pa.string(), "a letter (mcq), yes or no (yes_no), text (open), the caption (caption)"),
        _field(
            "turns",
            pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("text", pa.string())])),
            "role and text of each turn; null unless conversation",
            nullable=True,
        ),
        _field("images", pa.list_(pa.binary()), "encoded pictures (PNG, JPEG, TIFF ...), in the question's order"),
        _field("subfield", pa.string(), "histopathology, gross, ihc, cytology, fish or null", nullable=True),
        _field("split", pa.string(), "warm_start, train, val, test ..."),
        _field("level", pa.string(), "easy, medium, hard or null", nullable=True),
        _field("explanation", pa.string(), "the reasoning a supervised stage teaches", nullable=True),
        _field("meta", pa.string(), "anything else, as JSON text", nullable=True),
        _field("license", pa.string(), "the licence of the picture and its text", nullable=True),
    ]
)
COLUMNS = tuple(SCHEMA.names)


def to_row(sample: Sample) -> dict[str, Any]:
    """A sample as a row of `SCHEMA`: plain Python values, `meta` as JSON text."""
    row: dict[str, Any] = {field.name: getattr(sample, field.name) for field in fields(sample)}
    row["options"] = None if sample.options is None else list(sample.options)
    row["turns"] = None if sample.turns is None else [{"role": t.role, "text": t.text} for t in sample.turns]
    row["images"] = list(sample.images)
    row["meta"] = None if sample.meta is None else json.dumps(sample.meta, sort_keys=True)
    return row


def from_row(row: Mapping[str, Any]) -> Sample:
    """A row of `SCHEMA` as a sample. Raises DataError where `meta` is not a JSON object, or a value is missing."""
    if missing := _missing(row):
        raise DataError(f"sample {row['id']!r}: {missing} is null")
    meta = row["meta"]
    if meta is not None:
        try:
            meta = json.loads(meta)
        except json.JSONDecodeError as error:
            raise DataError(f"sample {row['id']!r}: meta is not JSON ({error}); write it with json.dumps") from error
        if not isinstance(meta, dict):
            raise DataError(f"sample {row['id']!r}: meta is JSON but not an object; wrap it in {{}}")
    turns = row["turns"]
    values = dict(row)
    values["options"] = None if row["options"] is None else tuple(row["options"])
    values["turns"] = None if turns is None else tuple(Turn(role=turn["role"], text=turn["text"]) for turn in turns)
    values["images"] = tuple(bytes(image) for image in row["images"])
    values["meta"] = meta
    return Sample(**{name: values[name] for name in COLUMNS})


def _missing(row: Mapping[str, Any]) -> str | None:
    """The first value that has to be there and is null, as files of other writers may have them."""
    for column in SCHEMA:
        if not column.nullable and row[column.name] is None:
            return column.name
    for name in ("images", "options", "turns"):
        if any(entry is None for entry in row[name] or ()):
            return f"an entry of {name}"
    if any(turn[key] is None for turn in row["turns"] or () for key in ("role", "text")):
        return "a turn's role or text"
    return None


def check_schema(schema: pa.Schema, path: str | Path) -> None:
    """Raises DataError where a file's columns are not those of `SCHEMA` (other columns are allowed and ignored)."""
    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; a file of samples has the columns {', '.join(COLUMNS)}"
        )
    for expected in SCHEMA:
        found = schema.field(expected.name).type
        if not _compatible(found, expected.type):
            raise DataError(f"{path}: column {expected.name} is {found}, expected {expected.type}")


def _compatible(found: pa.DataType, expected: pa.DataType) -> bool:
    """Equal but for the width of offsets, the names inside lists, and columns that are null throughout."""
    if pa.types.is_null(found) or found.equals(expected):
        return True
    if pa.types.is_string(expected):
        return pa.types.is_large_string(found)
    if pa.types.is_binary(expected):
        return pa.types.is_large_binary(found)
    if pa.types.is_list(expected):
        if not (pa.types.is_list(found) or pa.types.is_large_list(found)):
            return False
        return _compatible(cast(Any, found).value_type, cast(Any, expected).value_type)
    if pa.types.is_struct(expected):
        return pa.types.is_struct(found) and {f.name for f in found} == {f.name for f in expected}
    return False


def write(samples: Iterable[Sample], path: str | Path) -> int:
    """Writes samples to one Parquet file and returns how many.

    The file appears whole or not at all.
    Raises DataError on a sample that cannot be used, on an id that comes twice, and when there is no sample at all.
    """
    seen: set[str] = set()
    with replacing(path) as part:
        # Pictures that repeat are written each time: a dictionary would hide from a reader how large its rows are.
        texts = [column.name for column in SCHEMA if column.type == pa.string()]
        # They are packed already: to pack them again costs time at every reading and saves nothing.
        packed = dict.fromkeys(texts, "zstd")
        with pq.ParquetWriter(part, SCHEMA, compression=packed, use_dictionary=texts) as writer:
            for rows in _batches(samples, ROW_GROUP_ROWS, seen, path):
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=ROW_GROUP_ROWS)
        if not seen:
            raise DataError(f"{path}: no samples to write")
    return len(seen)


def _batches(samples: Iterable[Sample], size: int, seen: set[str], path: str | Path) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for sample in samples:
        if problem := sample.problem():
            raise DataError(f"{path}: sample {sample.id!r}: {problem}")
        if sample.id in seen:
            raise DataError(f"{path}: sample id {sample.id!r} comes twice; ids must be unique")
        seen.add(sample.id)
        rows.append(to_row(sample))
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


def read(path: str | Path, *, columns: Sequence[str] | None = None) -> Iterator[Sample]:
    """The samples of one Parquet file, one row group in memory at a time.

    Without `images` among `columns`, samples come with none: reading texts alone does not touch the pictures.
    path: local, or the URI of an object store (`pathor1.places`). Raises DataError for a file that is missing, cannot
    be reached, is not Parquet, or lacks a column.
    """
    file = open_parquet(path)
    wanted = list(columns) if columns is not None else list(COLUMNS)
    blank: dict[str, Any] = {column.name: None if column.nullable else "" for column in SCHEMA} | {"images": []}
    for index in range(file.num_row_groups):
        with places.told(str(path)):
            table = file.read_row_group(index, columns=wanted)
        for row in table.to_pylist():
            yield from_row({**blank, **row})


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """Opens a file of samples by its footer; raises DataError where it is missing, is not Parquet or lacks columns."""
    if not places.is_remote(str(path)) and not Path(path).is_file():
        raise DataError(f"{path}: no such file; `pathor1 data render --out DIR` makes a set to try things on")
    file = places.parquet(str(path))
    check_schema(file.schema_arrow, path)
    return file
