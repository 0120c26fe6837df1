"""Stage c, `captions`: each figure with its caption, cut out of the page; what has no partner is kept apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from pathor1.curation import schemas
from pathor1.curation.made import Made, Part, read_rows
from pathor1.curation.matching import Found, Match, PageFound, match
from pathor1.curation.pdf import Word
from pathor1.curation.pictures import crop, encode, pixels_sha256
from pathor1.curation.stage import Card, Chunk, Dropped, Inputs, Row, Stage, Work, digest
from pathor1.data.images import LARGEST_PIXELS, decode

_PAGE = ("id", "page", "width", "height", "license")
_REGION = ("id", "page", "kind", "box", "order", "text", "lines", "text_from")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The parts of a chunk: its own, and those of the book's pages before and after it. (pages, layout) each."""

    own: tuple[Path, Path]
    beside: tuple[tuple[Path, Path], ...]


class Captions(Stage):
    """Pages and their layout -> rows of `schemas.CAPTIONS`."""

    name = "captions"
    version = 1
    inputs = ("pages", "layout")
    schema = schemas.CAPTIONS

    def settings(self) -> Mapping[str, Any]:
        return self.recipe.captions.model_dump()

    def tools(self) -> Mapping[str, str]:
        return {"scipy": version("scipy")}

    def chunks(self, inputs: Inputs) -> Iterator[Chunk | Dropped]:
        pages = {part.key: part for part in inputs["pages"].parts}
        for before, part, after in neighbours(inputs["layout"].parts):
            beside = [each for each in (before, after) if each is not None]
            yield Chunk(
                key=part.key,
                made_of=digest([(pages[each.key].sha256, each.sha256) for each in (part, *beside)]),
                items=part.rows,
                payload=Window(
                    own=(pages[part.key].path, part.path),
                    beside=tuple((pages[each.key].path, each.path) for each in beside),
                ),
            )

    def open(self) -> Work:
        return self._match

    def _match(self, chunk: Chunk) -> Iterable[Row | Dropped]:
        window: Window = chunk.payload
        pages = {page.page: page for pair in (window.own, *window.beside) for page in read_pages(*pair)}
        settings = self.recipe.captions
        found = match(pages, max_distance=settings.max_distance, across_pages=settings.across_pages)
        by_page: dict[int, list[Match]] = {}
        for each in found:
            by_page.setdefault(each.page, []).append(each)
        for row in read_rows(window.own[0], [*_PAGE, "book", "image"]):
            if row["page"] in by_page:
                yield from self._rows(row, by_page[row["page"]], pages[row["page"]])

    def _rows(self, page: Row, matches: Sequence[Match], found: PageFound) -> Iterable[Row | Dropped]:
        picture: Image.Image | None = None
        figures = captions = 0
        for each in matches:
            if each.figure is None:
                captions += 1
                yield self._row(page, f"c{captions}", each, found, None)
                continue
            figures += 1
            box = each.figure
            if min(box[2] - box[0], box[3] - box[1]) < self.recipe.captions.min_side:
                detail = f"{box[2] - box[0]:.0f} x {box[3] - box[1]:.0f} pixels"
                yield Dropped(where=f"{page['id']}/f{figures}", reason="figure too small", detail=detail)
                continue
            if picture is None:
                picture = decode(page["image"], min_pixels=1, max_pixels=LARGEST_PIXELS)
            yield self._row(page, f"f{figures}", each, found, crop(picture, box))

    def _row(self, page: Row, name: str, each: Match, found: PageFound, picture: Image.Image | None) -> Row:
        caption = each.caption
        status = "matched" if caption is not None and picture is not None else "figure_without_caption"
        if picture is None:
            status = "caption_without_figure"
        box = each.figure if each.figure is not None else caption.box if caption is not None else (0, 0, 0, 0)
        return {
            "id": f"{page['id']}/{name}",
            "book": page["book"],
            "page": page["page"],
            "status": status,
            "number": caption.number if caption else "",
            "caption": caption.text if caption else "",
            "caption_page": caption.page if caption else None,
            "caption_boxes": [{"page": number, "box": each_box} for number, each_box in caption.boxes]
            if caption
            else [],
            "side": each.side,
            "cost": each.cost,
            "text_from": caption.regions[0].text_from if caption else "",
            "box": box,
            "lines": [{"text": line.text, "box": line.box, "size": line.size} for line in each.lines],
            "license": page["license"],
            "image": None if picture is None else encode(picture, "png"),
            "image_sha256": None if picture is None else pixels_sha256(picture),
            "tool": f"pathor1 captions {self.version}",
        }

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        for row in made.read(parts=made.some()):
            yield Card(
                title=row["id"],
                picture=row["image"],
                facts=[
                    ("status", row["status"].replace("_", " ")),
                    ("caption", row["caption"]),
                    ("number", row["number"]),
                    ("caption is", row["side"]),
                    ("cost", "" if row["cost"] is None else f"{row['cost']:.3f}"),
                    ("text from", row["text_from"]),
                ],
                flagged=row["status"] != "matched" or not row["number"],
            )


def neighbours(parts: Sequence[Part]) -> Iterator[tuple[Part | None, Part, Part | None]]:
    """Each part with those of the same book before and after it."""
    for place, part in enumerate(parts):
        before = parts[place - 1] if place and book_of(parts[place - 1]) == book_of(part) else None
        after = parts[place + 1] if place + 1 < len(parts) and book_of(parts[place + 1]) == book_of(part) else None
        yield before, part, after


def book_of(part: Part) -> str:
    """The book that a part is of: its key without the chunk's number."""
    return part.key.rpartition("-")[0]


def read_pages(pages: Path, layout: Path) -> list[PageFound]:
    """The pages of a chunk with their regions in reading order; no picture is read."""
    regions: dict[int, list[Found]] = {}
    for row in read_rows(layout, _REGION):
        found = Found(
            id=row["id"],
            kind=row["kind"],
            box=tuple(row["box"]),
            place=row["order"],
            text=row["text"],
            lines=tuple(Word(text=line["text"], box=tuple(line["box"]), size=line["size"]) for line in row["lines"]),
            text_from=row["text_from"],
        )
        regions.setdefault(row["page"], []).append(found)
    return [
        PageFound(
            page=row["page"],
            width=row["width"],
            height=row["height"],
            regions=tuple(sorted(regions.get(row["page"], []), key=lambda each: each.place)),
        )
        for row in read_rows(pages, _PAGE)
    ]
