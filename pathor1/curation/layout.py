"""Stage b, `layout`: what is where on a page, and what is written there, in reading order.

A page without a text layer is read by OCR here, once, as its lines say what is a caption. The rows' `tool` says which
detector has run, and `text_from` who has read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from pathor1.curation import detectors, ocr, schemas
from pathor1.curation.detectors import Detector, PageInput, Region
from pathor1.curation.lines import TABLE, is_caption, joined, of_words, reading_order
from pathor1.curation.made import Made, read_rows
from pathor1.curation.pages import SCAN_SHARE
from pathor1.curation.pdf import Corners, Word
from pathor1.curation.stage import Box, Card, Chunk, Dropped, Inputs, Row, Stage, Work, digest
from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.errors import DataError
from pathor1.evaluation.answers import weights

COLUMNS = ("id", "book", "page", "source", "dpi", "width", "height", "kind", "words", "pictures", "image")


class Layout(Stage):
    """Pages -> rows of `schemas.LAYOUT`."""

    name = "layout"
    version = 1
    inputs = ("pages",)
    schema = schemas.LAYOUT

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self.num_gpus = 1.0 if recipe.layout.device.startswith("cuda") else 0.0
        self._detector: Detector | None = None
        self._reader: ocr.Reader | None = None

    def settings(self) -> Mapping[str, Any]:
        found = self.recipe.layout.model_dump(exclude={"device"})
        if self.recipe.layout.weights is not None:
            path = Path(self.recipe.layout.weights)
            found["weights_files"] = weights(str(path)) if path.is_dir() else [path.name, path.stat().st_size]
        return found

    def tools(self) -> Mapping[str, str]:
        return {**detectors.named(self.recipe.layout), **ocr.named(self.recipe.layout.ocr)}

    def chunks(self, inputs: Inputs) -> Iterator[Chunk | Dropped]:
        for part in inputs["pages"].parts:
            yield Chunk(key=part.key, made_of=digest(part.sha256), items=part.rows, payload=part.path)

    def open(self) -> Work:
        self._detector = detectors.detector(self.recipe.layout)
        return self._pages

    def _pages(self, chunk: Chunk) -> Iterable[Row | Dropped]:
        for row in read_rows(chunk.payload, COLUMNS):
            yield from self._page(row)

    def _page(self, row: Row) -> Iterable[Row | Dropped]:
        assert self._detector is not None
        picture = decode(row["image"], min_pixels=1, max_pixels=LARGEST_PIXELS)
        lines, text_from = of_words([_word(each) for each in row["words"]]), "pdf"
        if row["kind"] == "blank":
            yield Dropped(where=row["id"], reason="blank page", detail="nothing is on it")
            return
        if not lines:
            reader = self._ocr()
            if reader is None and row["kind"] == "scanned":
                detail = 'it has no text layer, and layout.ocr is "none"'
                yield Dropped(where=row["id"], reason="no text layer", detail=detail)
                return
            if reader is not None:
                try:
                    read = reader.lines(picture, row["dpi"])
                except DataError as error:
                    yield Dropped(where=row["id"], reason="unreadable by OCR", detail=str(error))
                    return
                lines, text_from = sorted(read, key=lambda line: line.box[1]), reader.name
        page = PageInput(
            source=row["source"],
            number=row["page"],
            picture=picture,
            dpi=row["dpi"],
            lines=lines,
            ocr=text_from != "pdf",
            pictures=[tuple(box) for box in row["pictures"] if not _is_scan(box, picture)],
        )
        regions = [captioned(region) for region in self._detector.regions(page)]
        if not regions:
            yield Dropped(where=row["id"], reason="nothing found", detail="neither text nor a figure")
        for order, place in enumerate(reading_order([region.box for region in regions])):
            yield _row(row, regions[place], order, text_from, self._detector.name)

    def _ocr(self) -> ocr.Reader | None:
        """Loaded when the first page needs it: most books need none."""
        if self._reader is None:
            self._reader = ocr.reader(self.recipe.layout.ocr, self.recipe.layout.ocr_languages)
        return self._reader

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        for part in made.some():
            regions: dict[int, list[Row]] = {}
            for row in read_rows(part.path, ["page", "kind", "box", "order", "text_from", "tool"]):
                regions.setdefault(row["page"], []).append(row)
            pages = inputs["pages"].part(part.key)
            assert pages is not None  # a chunk's key is the same in both
            for page in read_rows(pages.path, ["id", "page", "image"]):
                if page["page"] in regions:
                    yield _card(page, regions[page["page"]])


def _card(page: Row, found: list[Row]) -> Card:
    return Card(
        title=page["id"],
        picture=page["image"],
        boxes=[Box(at=tuple(row["box"]), label=str(row["order"] + 1), kind=row["kind"]) for row in found],
        facts=[("detector", found[0]["tool"]), ("text from", found[0]["text_from"])],
        flagged=_wants_a_look(found),
    )


def _wants_a_look(regions: list[Row]) -> bool:
    """Figures and captions of a page that are not as many."""
    kinds = [row["kind"] for row in regions]
    return kinds.count("figure") != kinds.count("caption")


def _word(found: Mapping[str, Any]) -> Word:
    return Word(text=found["text"], box=tuple(found["box"]), size=found["size"])


def _is_scan(box: Iterable[float], picture: Image.Image) -> bool:
    left, top, right, bottom = box
    return (right - left) * (bottom - top) >= SCAN_SHARE * picture.width * picture.height


def captioned(region: Region) -> Region:
    """What a model calls text and begins as a caption does is one; what begins as that of a table is none."""
    first = region.lines[0].text if region.lines else ""
    if region.kind in ("text", "other") and is_caption(first):
        return replace(region, kind="caption")
    if region.kind == "caption" and TABLE.match(first):
        return replace(region, kind="other")
    return region


def _row(page: Row, region: Region, order: int, text_from: str, tool: str) -> Row:
    is_figure = region.kind == "figure"
    box: Corners = region.box
    return {
        "id": f"{page['id']}/r{order:03d}",
        "book": page["book"],
        "page": page["page"],
        "kind": region.kind,
        "box": box,
        "order": order,
        "score": region.score,
        "text": "" if is_figure else joined([line.text for line in region.lines]),
        "lines": [{"text": line.text, "box": line.box, "size": line.size} for line in region.lines],
        "text_from": text_from,
        "tool": tool,
    }
