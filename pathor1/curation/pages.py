"""Stage a, `pages`: PDF -> page pictures at a set dpi, with the words of the text layer where there is one.

Every page keeps its own size; what is encrypted, broken or empty is dropped with the reason, and the others go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pathor1 import places
from pathor1.curation import pdf, schemas
from pathor1.curation.made import Made
from pathor1.curation.pictures import encode
from pathor1.curation.stage import Box, Card, Chunk, Dropped, Inputs, Row, Stage, Work, digest
from pathor1.errors import DataError
from pathor1.evaluation.progress import Progress

# A picture over this share of a page is the page itself: it was scanned.
SCAN_SHARE = 0.8
# The share of pixels that are not paper's colour, below which nothing is on the page.
BLANK_SHARE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """A PDF. id: its name and the beginning of its hash, so that two books of one name are two."""

    id: str
    path: Path
    sha256: str
    pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRange:
    """Pages first to last of a book, from 1, both among them."""

    book: Book
    first: int
    last: int


class Pages(Stage):
    """PDFs -> rows of `schemas.PAGES`."""

    name = "pages"
    version = 1
    inputs = ()
    schema = schemas.PAGES

    def settings(self) -> Mapping[str, Any]:
        own = self.recipe.pages.model_dump(exclude={"chunk"})
        return {**own, "license": self.recipe.books.license}

    def tools(self) -> Mapping[str, str]:
        return {"pypdfium2": _version()}

    def chunks(self, inputs: Inputs) -> Iterator[Chunk | Dropped]:
        seen: dict[str, Path] = {}
        for path, found in _probed(expand(self.recipe.books.pdfs)):
            if isinstance(found, Dropped):
                yield found
            elif found.sha256 in seen:
                yield Dropped(where=str(path), reason="the same book twice", detail=f"it is {seen[found.sha256]}")
            else:
                seen[found.sha256] = path
                yield from self._chunks_of(found)

    def _chunks_of(self, book: Book) -> Iterator[Chunk]:
        size = self.recipe.pages.chunk
        for place, first in enumerate(range(1, book.pages + 1, size)):
            last = min(first + size - 1, book.pages)
            yield Chunk(
                key=f"{book.id}-{place:05d}",
                made_of=digest(book.sha256, book.id, first, last),
                items=last - first + 1,
                payload=PageRange(book=book, first=first, last=last),
            )

    def singly(self, chunk: Chunk) -> list[Chunk]:
        pages: PageRange = chunk.payload
        return [
            replace(
                chunk,
                key=f"{pages.book.id}/p{number:05d}",
                items=1,
                payload=replace(pages, first=number, last=number),
            )
            for number in range(pages.first, pages.last + 1)
        ]

    def open(self) -> Work:
        return self._read

    def _read(self, chunk: Chunk) -> Iterable[Row | Dropped]:
        pages: PageRange = chunk.payload
        settings = self.recipe.pages
        with contextlib.ExitStack() as opened:
            document: Any = None
            for number in range(pages.first, pages.last + 1):
                try:
                    if document is None:  # that it could be opened once is no promise
                        document = opened.enter_context(pdf.opened(pages.book.path))
                    page = pdf.read(document, number - 1, dpi=settings.dpi, max_pixels=settings.max_pixels)
                except DataError as error:
                    yield Dropped(where=f"{pages.book.id}/p{number:05d}", reason="page unreadable", detail=str(error))
                else:
                    yield self._row(pages.book, number, page)

    def _row(self, book: Book, number: int, page: pdf.Page) -> Row:
        encoded = encode(page.picture, self.recipe.pages.picture)
        return {
            "id": f"{book.id}/p{number:05d}",
            "book": book.id,
            "page": number,
            "book_sha256": book.sha256,
            "source": book.path.name,
            "license": self.recipe.books.license,
            "width_pt": page.width_pt,
            "height_pt": page.height_pt,
            "rotation": page.rotation,
            "dpi": page.dpi,
            "width": page.picture.width,
            "height": page.picture.height,
            "kind": kind(page),
            "words": [{"text": word.text, "box": word.box, "size": word.size} for word in page.words],
            "pictures": list(page.pictures),
            "image": encoded,
            "image_sha256": hashlib.sha256(encoded).hexdigest(),
            "tool": f"pypdfium2 {_version()}",
        }

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        columns = ("id", "kind", "source", "dpi", "width_pt", "height_pt", "words", "pictures", "image")
        for row in made.read(columns, parts=made.some()):
            yield Card(
                title=row["id"],
                picture=row["image"],
                boxes=[Box(at=tuple(box), kind="picture in the PDF") for box in row["pictures"]],
                facts=[
                    ("kind", row["kind"]),
                    ("source", row["source"]),
                    ("size", f"{row['width_pt']:.0f} x {row['height_pt']:.0f} points at {row['dpi']:.0f} dpi"),
                    ("words", f"{len(row['words']):,}"),
                ],
                flagged=row["kind"] == "scanned" and not row["words"],
            )


def expand(patterns: Sequence[str]) -> list[Path]:
    """PDF files, folders of them (and what is in these), and globs -> the files, sorted, each once.

    Raises DataError where one names nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            paths = sorted(each for each in path.rglob("*") if each.suffix.lower() == ".pdf" and each.is_file())
        elif not path.exists() and any(mark in pattern for mark in places.MARKS):
            paths = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        else:
            paths = [path] if path.is_file() else []
        if not paths:
            raise DataError(f"{pattern}: no PDF there; books.pdfs names files, folders or globs")
        found.update(dict.fromkeys(paths))
    return list(found)


def _probed(paths: Sequence[Path]) -> Iterator[tuple[Path, Book | Dropped]]:
    """Each file as a book, or why it cannot be one; opened in tasks of Ray, as a file may take down who opens it."""
    import ray

    task = ray.remote(num_cpus=0.5, max_retries=0)(probe)
    progress = Progress("pages: opening", total=len(paths), what="books")
    for path, reference in [(path, task.remote(path)) for path in paths]:
        try:
            found = ray.get(reference)
        except ray.exceptions.WorkerCrashedError:
            found = Dropped(where=str(path), reason="book unreadable", detail="PDFium crashed on opening it")
        progress.add(1)
        yield path, found


def probe(path: Path) -> Book | Dropped:
    """The file as a book, or why it cannot be one."""
    try:
        sha256 = pdf.sha256(path)
        with pdf.opened(path) as document:
            pages = len(document)
        if not pages:
            raise DataError("no pages")
    except OSError as error:
        return Dropped(where=str(path), reason="book unreadable", detail=str(error.strerror))
    except DataError as error:
        reason = "book encrypted" if str(error).startswith("encrypted") else "book unreadable"
        return Dropped(where=str(path), reason=reason, detail=str(error))
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40] or "book"
    return Book(id=f"{name}-{sha256[:8]}", path=path, sha256=sha256, pages=pages)


def kind(page: pdf.Page) -> str:
    """scanned where a picture fills the page, blank where nothing is on it, else born_digital."""
    area = page.picture.width * page.picture.height
    if any((right - left) * (bottom - top) >= SCAN_SHARE * area for left, top, right, bottom in page.pictures):
        return "scanned"
    if not page.words and not page.pictures:
        grey = np.asarray(page.picture.convert("L"), dtype=np.int16)
        if (np.abs(grey - int(np.median(grey))) > 24).mean() < BLANK_SHARE:
            return "blank"
    return "born_digital"


def _version() -> str:
    try:
        return version("pypdfium2")
    except ImportError:  # PackageNotFoundError
        raise DataError("pypdfium2 is not installed; install pathor1[curation]") from None
