"""What an importer hands on: a sample whose pictures are still where they lie, or the reason why there is none."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample

# Of a file, in bytes, on the file systems in use.
LONGEST_NAME = 255
# A letter in front of an option's text: "A) ", "(B) ", "C. ".
_LETTERED = re.compile(r"^\s*\(?([A-Za-z])[).:]\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A square of a whole slide at its largest magnification: x, y of the upper left corner, and side, in pixels."""

    slide: Path
    x: int
    y: int
    side: int

    def __str__(self) -> str:
        return f"{self.slide} at {self.x}, {self.y}"

    def png(self) -> bytes:
        """The region as an RGB PNG, lossless as slides are large and read once. Raises DataError where it cannot be."""
        try:
            import openslide
        except ImportError as error:
            raise DataError("reading whole slides needs OpenSlide: pip install 'pathor1[slides]'") from error
        try:
            with openslide.OpenSlide(self.slide) as slide:
                width, height = slide.dimensions
                if not (0 <= self.x <= width - self.side and 0 <= self.y <= height - self.side):
                    raise DataError(f"lies outside the slide's {width} x {height} pixels")
                region = slide.read_region((self.x, self.y), 0, (self.side, self.side))
        except openslide.OpenSlideError as error:
            raise DataError(f"a slide that cannot be read: {error}") from error
        buffer = io.BytesIO()
        region.convert("RGB").save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


# Encoded bytes, the file they are in, or a place in a slide.
Picture = bytes | Path | Region


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One item of a public set.

    where: names the item for who has the set before him, e.g. "data.json, PubMed/val/17". sample: without pictures,
    None where the item cannot be used, and `problem` says why.
    """

    where: str
    sample: Sample | None = None
    pictures: tuple[Picture, ...] = ()
    problem: str | None = None


Records = Callable[[Path], Iterator[Record]]
# A sample without pictures, and the pictures.
Built = tuple[Sample, tuple[Picture, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One public layout. `source`: what the path that is given names, for the help; `records`: its items in order.

    `records` raises DataError where the source as a whole is not of this layout.
    """

    source: str
    records: Records


def record(where: str, build: Callable[[], Built]) -> Record:
    """What `build` makes of one item; the DataError that it raises becomes the item's problem."""
    try:
        sample, pictures = build()
    except DataError as error:
        return Record(where=where, problem=str(error))
    return Record(where=where, sample=sample, pictures=pictures)


def entries(item: Any) -> Mapping[str, Any]:
    """The item, if it is a table of fields. Raises DataError where it is anything else."""
    if not isinstance(item, Mapping):
        raise DataError(f"of type {type(item).__name__}, where a table of fields is needed")
    return item


def field(item: Mapping[str, Any], *names: str) -> Any:
    """The first of `names` that the item has and that is not null. Raises DataError where it has none."""
    for name in names:
        if item.get(name) is not None:
            return item[name]
    if null := [name for name in names if name in item]:
        raise DataError(f"{null[0]} is null")
    raise DataError(f"no field {' or '.join(names)}; it has {', '.join(map(str, item)) or 'none'}")


def text(item: Mapping[str, Any], *names: str) -> str:
    """As `field`, a text that is not blank, stripped."""
    value = field(item, *names)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{names[0]} is {value!r}, where a text is needed")
    return value.strip()


def without_letter(option: str) -> str:
    """An option's text without the letter in front: "A) Lymphoma (B-cell)" -> "Lymphoma (B-cell)"."""
    return _LETTERED.sub("", option, count=1).strip()


def letter_in_front(answer: str) -> str | None:
    """The letter in front of an answer, as a capital: "D) Melanoma" and "D" -> "D"; None where there is none."""
    alone = answer.strip().strip("().").upper()
    if alone in tuple(LETTERS):
        return alone
    found = _LETTERED.match(answer)
    return found.group(1).upper() if found else None


def letter_of(answer: str, options: tuple[str, ...]) -> str:
    """The letter of the option whose text is the answer's. Raises DataError where none or several have it."""
    wanted = answer.strip().casefold()
    places = [place for place, option in enumerate(options) if option.strip().casefold() == wanted]
    if len(places) != 1 or places[0] >= len(LETTERS):
        raise DataError(f"the answer {answer!r} is the text of {len(places)} of the options {list(options)}")
    return LETTERS[places[0]]


def file_in(folder: Path, name: str) -> Path:
    """The file of that name in the folder. Raises DataError where it is missing, or its name leads elsewhere."""
    if is_in(folder, name):
        return folder / name
    raise DataError(f"picture {name[:80]}: not in {folder}")


def is_in(folder: Path, name: str) -> bool:
    """Whether the folder has a file of that name. Raises DataError for what cannot be one, or leads elsewhere."""
    shown = name[:80]  # some rows hold the picture itself where its name should be
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"picture {shown}: its name leads out of {folder}")
    if any(len(part) > LONGEST_NAME for part in Path(name).parts):
        raise DataError(f"picture {shown}: longer than the name of a file")
    try:
        return (folder / name).is_file()
    except (OSError, ValueError) as error:  # too long as a whole; a zero byte in it
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"picture {shown}: {why}") from error


def need_file(path: Path, what: str) -> Path:
    """The path of a source's own file. Raises DataError where it is missing."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {what}")
    return path


def json_items(path: Path, prefix: str = "item") -> Iterator[Any]:
    """The entries of a JSON list (or of what `prefix` names, see ijson), one in memory at a time.

    Raises DataError where the file is not JSON.
    """
    import ijson

    with path.open("rb") as file:
        try:
            yield from ijson.items(file, prefix, use_float=True)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not JSON: {str(error).splitlines()[0]}") from error


def json_lines(path: Path) -> Iterator[Any]:
    """The entries of a file of JSON lines, blank lines passed over. Raises DataError with the number of a bad one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line.decode("utf-8-sig"))
                except ValueError as error:
                    raise DataError(f"{path}, line {number}: not JSON: {error}") from error


def table_rows(path: Path, *, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """The rows of a CSV or TSV file with a header; a cell may have many lines, and any length.

    Raises DataError where the file is no text.
    """
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for row in csv.DictReader(file, delimiter=delimiter):
                yield {name: value for name, value in row.items() if isinstance(name, str) and isinstance(value, str)}
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a table of texts: {error}") from error


def parquet_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, a hundred in memory at a time. Raises DataError where it is none or lacks columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    if missing := [name for name in columns or () if name not in file.schema_arrow.names]:
        raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}")
    try:
        for batch in file.iter_batches(batch_size=100, columns=columns):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: a broken Parquet file ({str(error).splitlines()[0]})") from error


def picture_of_hub(value: Any) -> bytes:
    """The bytes of a picture as Hugging Face's `Image` column holds it. Raises DataError where there are none."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes) or not data:
        raise DataError("image has no bytes; the file refers to pictures that are elsewhere")
    return data
