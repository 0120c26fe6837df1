"""Stage d, `panels`: composite figures into panels, each with what the caption says of it.

Where picture and caption do not agree on the panels, the figure stays whole and its row says why a person should look.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pathor1.curation import ocr, panel_model, schemas
from pathor1.curation.caption_parts import Parts, parse
from pathor1.curation.labelling import Labelled, label
from pathor1.curation.made import Made, read_rows
from pathor1.curation.pdf import Word
from pathor1.curation.pictures import crop, encode, pixels_sha256
from pathor1.curation.splitting import split
from pathor1.curation.stage import Box, Card, Chunk, Dropped, Inputs, Row, Stage, Work, digest

# At least so many dots an inch are taken for a figure's: letters are read at this size.
DPI = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """A row of `captions`, decoded."""

    row: Row
    picture: Image.Image
    parts: Parts


class Panels(Stage):
    """Matched figures -> rows of `schemas.PANELS`."""

    name = "panels"
    version = 2
    inputs = ("captions",)
    schema = schemas.PANELS

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._reader: ocr.Reader | None = None
        self._client: panel_model.PanelModel | None = None

    def settings(self) -> Mapping[str, Any]:
        settings = self.recipe.panels
        asked = None if settings.model is None else {"url": settings.model.url, "model": settings.model.model}
        return {
            "min_gutter": settings.min_gutter,
            "min_panel": settings.min_panel,
            "ocr": self.recipe.layout.ocr,
            "model": asked,
            "prompt": None if asked is None else panel_model.PROMPT_VERSION,
        }

    def tools(self) -> Mapping[str, str]:
        return ocr.named(self.recipe.layout.ocr)

    def chunks(self, inputs: Inputs) -> Iterator[Chunk | Dropped]:
        for part in inputs["captions"].parts:
            yield Chunk(key=part.key, made_of=digest(part.sha256), items=part.rows, payload=part.path)

    def open(self) -> Work:
        if self.recipe.panels.model is not None:
            self._client = panel_model.PanelModel(self.recipe.panels.model)
        return self._figures

    def _figures(self, chunk: Chunk) -> Iterable[Row | Dropped]:
        path: Path = chunk.payload
        waiting: list[_Figure] = []
        for row in read_rows(path):
            if row["status"] != "matched":
                yield Dropped(where=row["id"], reason=row["status"].replace("_", " "), detail=row["caption"][:200])
                continue
            picture = Image.open(io.BytesIO(row["image"])).convert("RGB")
            waiting.append(_Figure(row=row, picture=picture, parts=parse(row["caption"])))
            if len(waiting) == 8:
                yield from self._rows(waiting)
                waiting.clear()
        yield from self._rows(waiting)

    def _rows(self, figures: Sequence[_Figure]) -> Iterable[Row]:
        asked: Sequence[panel_model.Answer | None] = [None] * len(figures)
        if self._client is not None and figures:
            client = self._client
            with ThreadPoolExecutor(client.concurrency) as pool:
                asked = list(pool.map(lambda each: client.ask(each.picture, each.row["caption"]), figures))
        for figure, answer in zip(figures, asked, strict=True):
            found = self._labelled(figure)
            tool = f"pathor1 panels {self.version}"
            if answer is not None:
                found = panel_model.compared(found, answer, list(figure.parts.parts))
                tool += f", {answer.model}"
            yield from _of_figure(figure, found, tool)

    def _labelled(self, figure: _Figure) -> Labelled:
        settings, wanted = self.recipe.panels, list(figure.parts.parts)
        boxes = split(
            figure.picture,
            min_gutter=settings.min_gutter,
            min_panel=settings.min_panel,
            expected=max(1, len(wanted)),
        )
        left, top = figure.row["box"][:2]
        lines = [
            Word(text=line["text"], box=_moved(line["box"], -left, -top), size=line["size"])
            for line in figure.row["lines"]
        ]
        return label(
            boxes,
            wanted,
            figure=figure.picture,
            lines=lines,
            text_from=figure.row["text_from"],
            reader=self._ocr() if len(wanted) > 1 and len(boxes) > 1 else None,
            dpi=DPI,
        )

    def _ocr(self) -> ocr.Reader | None:
        if self._reader is None:
            self._reader = ocr.reader(self.recipe.layout.ocr, self.recipe.layout.ocr_languages, of_corners=True)
        return self._reader

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        for part in made.some():
            panels: dict[str, list[Row]] = {}
            for row in read_rows(part.path, ["figure", "panel", "box", "panel_caption", "label_from", "review"]):
                panels.setdefault(row["figure"], []).append(row)
            captions = inputs["captions"].part(part.key)
            assert captions is not None  # a chunk's key is the same in both
            for figure in read_rows(captions.path, ["id", "box", "caption", "image"]):
                if figure["id"] in panels:
                    yield _card(figure, panels[figure["id"]])


def _card(figure: Row, found: list[Row]) -> Card:
    left, top = figure["box"][:2]
    return Card(
        title=figure["id"],
        picture=figure["image"],
        boxes=[
            Box(at=_moved(row["box"], -left, -top), label=row["panel"], kind=row["label_from"] or "whole")
            for row in found
        ],
        facts=[
            *([("look", found[0]["review"])] if found[0]["review"] else []),
            ("caption", figure["caption"]),
            *((row["panel"] or "whole", row["panel_caption"]) for row in found),
        ],
        flagged=bool(found[0]["review"]),
    )


def _of_figure(figure: _Figure, found: Labelled, tool: str) -> Iterable[Row]:
    row = figure.row
    left, top = row["box"][:2]
    for panel in found.panels:
        picture = figure.picture
        if len(found.panels) > 1 or panel.label:
            picture = crop(picture, panel.box)
        yield {
            "id": f"{row['id']}/{panel.label.replace(' ', '-') or 'whole'}",
            "book": row["book"],
            "page": row["page"],
            "figure": row["id"],
            "number": row["number"],
            "panel": panel.label,
            "box": _moved(panel.box, left, top) if panel.label else row["box"],
            "caption": row["caption"],
            "panel_caption": figure.parts.of(panel.label) if panel.label else row["caption"],
            "label_from": panel.label_from,
            "review": found.review,
            "license": row["license"],
            "image": encode(picture, "png"),
            "image_sha256": pixels_sha256(picture),
            "tool": tool,
        }


def _moved(box: Sequence[float], right: float, down: float) -> tuple[float, float, float, float]:
    return box[0] + right, box[1] + down, box[2] + right, box[3] + down
