"""What is where on a page: one interface, and the detectors behind it.

The classical one needs no weights and is the default. The models know figures from text by their looks; what a text
block says, and whether it is a caption, is read from its lines in each case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from pathor1.curation.pdf import Corners, Word
from pathor1.curation.recipe import LayoutSettings
from pathor1.errors import ModelError

# Names of models' classes (DocLayNet's, PubLayNet's, DocStructBench's, PP-DocLayout's), in small letters with "_" for
# spaces and hyphens, and what they are here. Classes that are not here are "other".
KINDS: Mapping[str, str] = {
    **dict.fromkeys(("picture", "figure", "image", "chart"), "figure"),
    **dict.fromkeys(("caption", "figure_caption", "figure_title", "chart_title", "picture_caption"), "caption"),
    **dict.fromkeys(("text", "plain_text", "paragraph", "list", "list_item", "abstract", "footnote"), "text"),
    **dict.fromkeys(("title", "section_header", "doc_title", "paragraph_title", "document_title"), "title"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageInput:
    """A page. lines: from its text layer, or by OCR, within their columns. pictures: picture objects, but scans.

    source: the PDF's file name; number: of the page, from 1.
    """

    source: str
    number: int
    picture: Image.Image
    dpi: float
    lines: Sequence[Word]
    ocr: bool
    pictures: Sequence[Corners]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of a page. kind: text, title, caption, figure or other. lines: those within it, in reading order."""

    kind: str
    box: Corners
    score: float
    lines: Sequence[Word] = ()


class Detector(Protocol):
    """Finds the regions of a page; `name` says which one, and which version, it is."""

    name: str

    def regions(self, page: PageInput) -> list[Region]:
        """The regions, in no order."""


def detector(settings: LayoutSettings) -> Detector:
    """The detector that a recipe names, loaded. Raises ModelError where its weights or its package are missing."""
    if settings.detector == "classical":
        from pathor1.curation.classical import Classical

        return Classical()
    assert settings.weights is not None  # the recipe's own rule
    if settings.detector == "docling_json":
        from pathor1.curation.docling import DoclingJson

        return DoclingJson(settings.weights)
    if settings.detector == "transformers":
        return TransformersDetector(settings.weights, threshold=settings.threshold, device=settings.device)
    return DocLayoutYOLO(settings.weights, threshold=settings.threshold, device=settings.device)


def named(settings: LayoutSettings) -> Mapping[str, str]:
    """The detector and its version, without loading it."""
    if settings.detector == "classical":
        from pathor1.curation.classical import VERSION

        return {"classical detector": VERSION}
    if settings.detector == "docling_json":
        return {}
    package = "transformers" if settings.detector == "transformers" else "doclayout-yolo"
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        if package == "transformers":
            raise ModelError('layout.detector = "transformers": install pathor1[cpu] or pathor1[gpu]') from None
        raise ModelError(
            'layout.detector = "doclayout_yolo": the package doclayout-yolo is not installed, and not by pathor1, as '
            "its licence is the AGPL; install it yourself where that is no obstacle"
        ) from None


class TransformersDetector:
    """An object detector of transformers from a local folder: Docling's heron models (RT-DETR), PP-DocLayout."""

    def __init__(self, folder: str, *, threshold: float, device: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        if not (Path(folder) / "config.json").is_file():
            raise ModelError(f"{folder}: no config.json there; layout.weights is the folder of an object detector")
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{folder}: no object detector that transformers loads: {error}") from error
        self._model = self._model.to(device).eval()
        self._torch, self._device, self._threshold = torch, device, threshold
        self.name = f"{self._model.config.model_type} {Path(folder).name}, transformers {version('transformers')}"

    def regions(self, page: PageInput) -> list[Region]:
        inputs = self._processor(images=page.picture, return_tensors="pt").to(self._device)
        with self._torch.inference_mode():
            outputs = self._model(**inputs)
        sizes = self._torch.tensor([(page.picture.height, page.picture.width)])
        found = self._processor.post_process_object_detection(
            outputs, threshold=self._threshold, target_sizes=sizes.to(self._device)
        )[0]
        names = self._model.config.id2label
        boxes = [
            (str(names[int(label)]), tuple(box), float(score))
            for label, box, score in zip(
                found["labels"].tolist(), found["boxes"].tolist(), found["scores"].tolist(), strict=True
            )
        ]
        return of_boxes(boxes, page)


class DocLayoutYOLO:
    """DocLayout-YOLO by its own package, which is AGPL and is imported only where a recipe asks for it."""

    def __init__(self, weights: str, *, threshold: float, device: str) -> None:
        from doclayout_yolo import YOLOv10

        if not Path(weights).is_file():
            raise ModelError(f"{weights}: no such file; layout.weights is DocLayout-YOLO's .pt file")
        self._model: Any = YOLOv10(weights)
        self._threshold, self._device = threshold, device
        self.name = f"doclayout-yolo {version('doclayout-yolo')} {Path(weights).name}"

    def regions(self, page: PageInput) -> list[Region]:
        found = self._model.predict(page.picture, imgsz=1024, conf=self._threshold, device=self._device, verbose=False)[
            0
        ]
        boxes = [
            (str(found.names[int(label)]), tuple(box), float(score))
            for label, box, score in zip(
                found.boxes.cls.tolist(), found.boxes.xyxy.tolist(), found.boxes.conf.tolist(), strict=True
            )
        ]
        return of_boxes(boxes, page)


def of_boxes(boxes: Sequence[tuple[str, tuple[float, ...], float]], page: PageInput) -> list[Region]:
    """A model's boxes (class, corners, score) as regions: cut to the page, each once, each line in one of them."""
    width, height = page.picture.size
    kept: list[tuple[str, Corners, float]] = []
    for name, (left, top, right, bottom), score in sorted(boxes, key=lambda each: -each[2]):
        box = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
        kind = KINDS.get(name.strip().lower().replace(" ", "_").replace("-", "_"), "other")
        if box[2] - box[0] > 2 and box[3] - box[1] > 2 and all(_shared(box, other) < 0.7 for _, other, _ in kept):
            kept.append((kind, box, score))
    lines: list[list[Word]] = [[] for _ in kept]
    for line in page.lines:
        shares = [_shared(line.box, box) for _, box, _ in kept]
        if shares and max(shares) > 0.5:
            lines[shares.index(max(shares))].append(line)
    return [
        Region(kind=kind, box=box, score=score, lines=tuple(own))
        for (kind, box, score), own in zip(kept, lines, strict=True)
    ]


def _shared(one: Corners, other: Corners) -> float:
    """The share of the smaller of two boxes that both have in common."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(0.0, across) * max(0.0, down) / max(smaller, 1e-6)
