"""Stage e, `references`: the sentences of the body text that speak of a figure, with page and offsets.

The body text of a page is its text blocks in reading order, a line break between two; captions, titles and running
heads are not in it. Offsets count its characters. A sentence may go on on the next page.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pathor1.curation import reference_model, schemas
from pathor1.curation.captions import book_of, neighbours
from pathor1.curation.made import Made, Part, read_rows
from pathor1.curation.mentions import Mention, Target, find, parts_of, sentences
from pathor1.curation.stage import Card, Chunk, Dropped, Inputs, Row, Stage, Work, digest

_FIGURE = ("id", "page", "number", "status", "caption", "caption_boxes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Layout parts of a chunk's own pages and of those after and before, and the captions of the whole book."""

    own: Path
    beside: tuple[Path, ...]
    captions: tuple[Path, ...]
    digest: str  # of what `captions` holds: they are read once in a worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure that can be referred to. number: its parts; panel: "B" where the caption is of "Figure 3-2B"."""

    id: str
    page: int
    number: tuple[str, ...]
    panel: str
    printed: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The body text of pages that follow each other. starts: where each page of `pages` begins in it."""

    text: str
    pages: tuple[int, ...]
    starts: tuple[int, ...]

    def place(self, offset: int) -> tuple[int, int]:
        """Page, and offset in the page's own body text."""
        index = bisect_right(self.starts, offset) - 1
        return self.pages[index], offset - self.starts[index]


class References(Stage):
    """Layout and captions -> rows of `schemas.REFERENCES`."""

    name = "references"
    version = 1
    inputs = ("layout", "captions")
    schema = schemas.REFERENCES

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._client: reference_model.ReferenceModel | None = None

    def settings(self) -> Mapping[str, Any]:
        settings = self.recipe.references
        asked = None if settings.model is None else {"url": settings.model.url, "model": settings.model.model}
        prompt = None if asked is None else reference_model.PROMPT_VERSION
        return {"window_pages": settings.window_pages, "model": asked, "prompt": prompt}

    def chunks(self, inputs: Inputs) -> Iterator[Chunk | Dropped]:
        captions: dict[str, list[Part]] = {}
        for part in inputs["captions"].parts:
            captions.setdefault(book_of(part), []).append(part)
        # One tuple a book, and not one a chunk: a library has ten thousands of them.
        paths = {book: tuple(each.path for each in parts) for book, parts in captions.items()}
        digests = {book: digest([each.sha256 for each in parts]) for book, parts in captions.items()}
        for before, part, after in neighbours(inputs["layout"].parts):
            beside = [each for each in (before, after) if each is not None]
            of_book = digests[book_of(part)]
            yield Chunk(
                key=part.key,
                made_of=digest([each.sha256 for each in (part, *beside)], of_book),
                items=part.rows,
                payload=Window(
                    own=part.path,
                    beside=tuple(each.path for each in beside),
                    captions=paths[book_of(part)],
                    digest=of_book,
                ),
            )

    def open(self) -> Work:
        if self.recipe.references.model is not None:
            self._client = reference_model.ReferenceModel(self.recipe.references.model)
        return self._find

    def _find(self, chunk: Chunk) -> Iterable[Row | Dropped]:
        window: Window = chunk.payload
        figures, caption_boxes = _of_book(window.captions, window.digest)
        texts, own = _texts(window, caption_boxes)
        body = _body(texts)
        book = book_of_key(chunk.key)
        found: set[tuple[str, str]] = set()
        for start, end in sentences(body.text):
            if body.place(start)[0] in own:
                for mention in find(body.text[start:end]):
                    for each in self._rows(book, body, (start, end), mention, figures):
                        if isinstance(each, dict):
                            found.add((each["figure"], each["sentence"]))
                        yield each
        if self._client is not None:
            own_figures = [each for each in figures if each.page in own]
            yield from self._client.rows(book, texts, own_figures, found, tool=f"pathor1 references {self.version}")

    def _rows(
        self, book: str, body: Body, sentence: tuple[int, int], mention: Mention, figures: Sequence[Figure]
    ) -> Iterable[Row | Dropped]:
        start, end = sentence
        page, offset = body.place(start)
        said = body.text[start + mention.start : start + mention.end].replace("\n", " ")
        targets = mention.targets
        if mention.or_range and not _named(figures, targets[0]):
            targets = mention.or_range if _named(figures, mention.or_range[0]) else targets
        for target in targets:
            figure = _nearest(_named(figures, target), page, self.recipe.references.window_pages)
            if figure is None:
                where = f"{book}/p{page:05d}"
                yield Dropped(where=where, reason="no such figure", detail=f"{'-'.join(target.number)} in: {said}")
                continue
            end_page, end_offset = body.place(end - 1)
            yield {
                "id": f"{figure.id}/p{page:05d}-{offset + mention.start}",
                "book": book,
                "page": page,
                "figure": figure.id,
                "number": figure.printed,
                "panels": list(target.panels) or ([figure.panel] if figure.panel else []),
                "mention": said,
                "sentence": body.text[start:end].replace("\n", " "),
                "start": offset,
                "end_page": end_page,
                "end": end_offset + 1,
                "tool": f"pathor1 references {self.version}",
            }

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        for part in inputs["captions"].some():
            of_book = [each for each in made.parts if book_of(each) == book_of(part)]
            figures = [
                figure
                for figure in read_rows(part.path, ["id", "status", "caption", "image"])
                if figure["status"] == "matched"
            ]
            found: dict[str, list[Row]] = {figure["id"]: [] for figure in figures}
            for row in made.read(["figure", "page", "sentence", "mention"], parts=of_book):
                if row["figure"] in found:
                    found[row["figure"]].append(row)
            for figure in figures:
                yield _card(figure, found[figure["id"]])


def _card(figure: Row, rows: list[Row]) -> Card:
    return Card(
        title=figure["id"],
        picture=figure["image"],
        facts=[
            ("caption", figure["caption"]),
            *((f"page {row['page']}", f"{row['sentence']} [{row['mention']}]") for row in rows),
        ],
        flagged=not rows,
    )


def book_of_key(key: str) -> str:
    """The book of a chunk's key."""
    return key.rpartition("-")[0]


def _named(figures: Sequence[Figure], target: Target) -> list[Figure]:
    """The figures of a number. Where panels have captions of their own, those of the panels that are named."""
    found = [figure for figure in figures if figure.number == target.number]
    of_panel = [figure for figure in found if figure.panel in target.panels]
    return of_panel or found


def _nearest(figures: Sequence[Figure], page: int, most: int) -> Figure | None:
    """The nearest figure of one number: those of other chapters may have the same."""
    near = min(figures, key=lambda figure: (abs(figure.page - page), figure.page), default=None)
    if near is None or (len(figures) > 1 and abs(near.page - page) > most):
        return None
    return near


@lru_cache(maxsize=4)
def _of_book(paths: tuple[Path, ...], digest: str) -> tuple[list[Figure], frozenset[tuple[int, tuple[float, ...]]]]:
    """The figures of a book that have a number, and the pages and boxes of all blocks that are captions."""
    figures: list[Figure] = []
    boxes: set[tuple[int, tuple[float, ...]]] = set()
    for path in paths:
        for row in read_rows(path, _FIGURE):
            boxes.update((each["page"], tuple(each["box"])) for each in row["caption_boxes"])
            if row["status"] == "matched" and row["number"]:
                number, panel = row["number"], ""
                if number[-1].isalpha():
                    number, panel = number[:-1], number[-1]
                figures.append(
                    Figure(
                        id=row["id"],
                        page=row["page"],
                        number=parts_of(number),
                        panel=panel,
                        printed=row["number"],
                        caption=row["caption"],
                    )
                )
    return figures, frozenset(boxes)


def _texts(window: Window, captions: frozenset[tuple[int, tuple[float, ...]]]) -> tuple[dict[int, str], frozenset[int]]:
    """Body text by page, of the chunk's own pages and those beside; and which are its own."""
    blocks: dict[int, list[tuple[int, str]]] = {}
    own: set[int] = set()
    for path in (window.own, *window.beside):
        for row in read_rows(path, ["page", "kind", "box", "order", "text"]):
            blocks.setdefault(row["page"], [])
            if path == window.own:
                own.add(row["page"])
            if row["kind"] == "text" and (row["page"], tuple(row["box"])) not in captions:
                blocks[row["page"]].append((row["order"], row["text"]))
    return {page: "\n".join(text for _, text in sorted(found)) for page, found in sorted(blocks.items())}, frozenset(
        own
    )


def _body(texts: Mapping[int, str]) -> Body:
    pages, starts, length = tuple(texts), list[int](), 0
    for text in texts.values():
        starts.append(length)
        length += len(text) + 1
    return Body(text="\n".join(texts.values()), pages=pages, starts=tuple(starts))
