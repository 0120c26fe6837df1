"""VLMEvalKit's benchmarks: a TSV file of questions with their pictures, or a folder of such files.

Columns: index, question, image or image_path, A, B, C ..., answer, and often hint, category, l2-category, split. image
is base64, or, where it is short, the index of the row whose picture this row shares; image_path is looked for beside
the file, in images/ and in images/<file's stem>/. Both may be a list as Python writes it: several pictures. An option
that is empty or "nan" is not there, and the answer's letter is that of its column. Without options, yes and no make a
yes/no question, anything else an open one. The file's stem is the set's name; without a column split all is "test".
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import BinaryIO

from pathor1.data.formats.record import Built, Format, Picture, Record, record, text
from pathor1.data.formats.values import first_picture, known, name_of, split_of, yes_or_no
from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample, Task

# VLMEvalKit's own bound: an `image` of so many characters or fewer is an index.
LONGEST_INDEX = 64
Row = Mapping[str, str]


def records(source: Path) -> Iterator[Record]:
    """The rows of the file, or of all files of the folder."""
    paths = [source] if source.is_file() else sorted(source.glob("*.tsv"))
    if not paths:
        raise DataError(f"{source}: no such file, and no folder of *.tsv; give a TSV file of VLMEvalKit")
    for path in paths:
        yield from _of_file(path)


def _of_file(path: Path) -> Iterator[Record]:
    with path.open("rb") as file, path.open("rb") as again:
        table, pictures = _Table(path, file), _Table(path, again)
        # A shared picture is read once more where it lies: all of them do not fit in memory.
        at = {row.get("index"): offset for offset, row in _Table(path, again).rows()}

        def shared(index: str) -> str:
            if index not in at:
                raise DataError(f"image is {index!r}, neither a picture nor the index of a row")
            image = pictures.row(at[index]).get("image", "")
            if len(image) <= LONGEST_INDEX:
                raise DataError(f"image is that of row {index!r}, which has none of its own")
            return image

        for place, (_, row) in enumerate(table.rows()):
            yield record(f"{path.name}, {place}", partial(_build, row, place, path, shared))


class _Table:
    """The rows of a TSV file, in order or at an offset in bytes, without their empty cells.

    Raises DataError where the file is none, or lacks a column.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        file.seek(0)
        header = next(self._cells(), (0, []))[1]
        self._names = [name.removeprefix("\ufeff").strip() for name in header]
        missing = [name for name in ("index", "question", "answer") if name not in self._names]
        if missing or not {"image", "image_path"} & set(self._names):
            lacks = ", ".join(missing) or "image or image_path"
            raise DataError(f"{path}: no column {lacks}; a TSV file of VLMEvalKit has index, question, image, answer")
        self._start = file.tell()

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Each row with its offset, from the first on."""
        self._file.seek(self._start)
        for offset, cells in self._cells():
            if cells:
                yield offset, self._row(cells)

    def row(self, offset: int) -> Row:
        """The row at that offset."""
        self._file.seek(offset)
        return self._row(next(self._cells())[1])

    def _row(self, cells: list[str]) -> Row:
        stripped = ((name, cell.strip()) for name, cell in zip(self._names, cells, strict=False))
        return {name: cell for name, cell in stripped if cell and cell.lower() != "nan"}

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """From where the file stands: each row's offset and cells. A cell may have many lines, and any length."""
        csv.field_size_limit(1 << 30)
        # csv.reader takes no more lines than the row has, so that the file then stands at the next row.
        lines = (line.decode("utf-8") for line in iter(self._file.readline, b""))
        offset = self._file.tell()
        try:
            for cells in csv.reader(lines, delimiter="\t"):
                yield offset, cells
                offset = self._file.tell()
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self._path}, byte {offset}: not a TSV file: {error}") from error


def _build(row: Row, place: int, path: Path, shared: Callable[[str], str]) -> Built:
    split = split_of(row.get("split", "test"))
    letters = [letter for letter in ascii_uppercase if letter in row]
    task, answer = _answer(text(row, "answer"), letters)
    question = text(row, "question")
    sample = Sample(
        id=f"{path.stem}/{split}/{place}",
        source=path.stem,
        task=task,
        question=f"{row['hint']}\n{question}" if "hint" in row else question,
        options=tuple(row[letter] for letter in letters) or None,
        answer=answer,
        split=split,
        meta=known(row, "index", "category", "l2-category", "image_path") or None,
    )
    return sample, _pictures(row, path, shared)


def _answer(answer: str, letters: list[str]) -> tuple[Task, str]:
    """The task and its answer; the letter moves up where an option before it is not there."""
    if letters:
        if answer not in letters:
            raise DataError(f"the answer {answer!r} is none of the options' letters {', '.join(letters)}")
        place = letters.index(answer)
        return "mcq", LETTERS[place] if place < len(LETTERS) else answer
    yes_no = yes_or_no(answer)
    return ("yes_no", yes_no) if yes_no else ("open", answer)


def _pictures(row: Row, path: Path, shared: Callable[[str], str]) -> tuple[Picture, ...]:
    if "image" in row:
        image = row["image"]
        return tuple(map(_decode, _listed(image if len(image) > LONGEST_INDEX else shared(image), "image")))
    names = _listed(text(row, "image_path"), "image_path")
    folders = (path.parent, path.parent / "images", path.parent / "images" / path.stem)
    return tuple(first_picture(folders, [name]) for name in names)


def _listed(cell: str, column: str) -> list[str]:
    """The texts of a cell that is a list as Python writes it, or the cell itself."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError(f"{column} begins as a list does, and is none") from error
    return [name_of(value, column) for value in values]


def _decode(image: str) -> bytes:
    try:
        return base64.b64decode("".join(image.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image is not base64: {error}") from error


FORMAT = Format(source="a TSV file of VLMEvalKit, or a folder of them", records=records)
