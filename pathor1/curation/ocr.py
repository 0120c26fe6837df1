"""Reads pages that have no text layer: RapidOCR, whose wheel holds its models, or the program tesseract."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pathor1.curation.pdf import Corners, Word
from pathor1.errors import DataError, RecipeError

# OCR at more dots an inch than these takes longer and reads no better.
DPI = 150
# Corners of panels with shorter sides, in pixels, are made as large before letters are looked for. RapidOCR's own 736
# is for pages: of 36 letters on tissue it then read 20, in 0.68 s of CPU each, and with this 30 in 0.07 s.
CORNER_SIDE = 224
# Lines that RapidOCR is less sure of are tissue that looks like letters.
LEAST_SCORE = 0.6
TESSERACT_TIME = 300.0


class Reader(Protocol):
    """Reads the lines of a picture; `name` says by what, and by which version."""

    name: str

    def lines(self, picture: Image.Image, dpi: float) -> list[Word]:
        """The lines, with boxes in the picture's pixels and their height as size, in points.

        Raises DataError for a picture that it cannot read in time.
        """


def reader(kind: str, languages: str, *, of_corners: bool = False) -> Reader | None:
    """The reader that a recipe names, None for "none". Raises RecipeError where it is not installed.

    of_corners: it is to read pictures of one letter, and not pages.
    """
    if kind == "none":
        return None
    return _Tesseract(languages) if kind == "tesseract" else _RapidOCR(CORNER_SIDE if of_corners else None)


def named(kind: str) -> Mapping[str, str]:
    """The reader and its version, without loading it. Raises RecipeError as `reader` does."""
    if kind == "none":
        return {}
    return {kind: _tesseract_version() if kind == "tesseract" else _rapidocr_version()}


class _RapidOCR:
    """PP-OCR's models by onnxruntime, one thread: Ray's workers run side by side."""

    def __init__(self, least_side: int | None) -> None:
        self.name = f"rapidocr {_rapidocr_version()}"
        from rapidocr import RapidOCR

        sides = {} if least_side is None else {"Det.limit_side_len": least_side}

        self._read: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.use_cls": False,  # turns lines that stand on their head: pages are upright
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                **sides,
            }
        )

    def lines(self, picture: Image.Image, dpi: float) -> list[Word]:
        small, factor = _reduced(picture, dpi)
        found = self._read(np.asarray(small)[:, :, ::-1])
        if found.boxes is None:
            return []
        made: list[Word] = []
        for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
            if score >= LEAST_SCORE and text.strip():
                left, top = (float(value) / factor for value in corners.min(axis=0))
                right, bottom = (float(value) / factor for value in corners.max(axis=0))
                made.append(_line(text, (left, top, right, bottom), dpi))
        return made


class _Tesseract:
    """The program of the system."""

    def __init__(self, languages: str) -> None:
        self.name = f"tesseract {_tesseract_version()}"
        self._languages = languages

    def lines(self, picture: Image.Image, dpi: float) -> list[Word]:
        small, factor = _reduced(picture, dpi)
        buffer = io.BytesIO()
        small.save(buffer, "PNG", compress_level=1)
        command = ["tesseract", "stdin", "stdout", "-l", self._languages, "--dpi", str(round(min(dpi, DPI))), "tsv"]
        environment = {"OMP_THREAD_LIMIT": "1", "PATH": "/usr/bin:/usr/local/bin:/bin"}
        try:
            done = subprocess.run(
                command,
                input=buffer.getvalue(),
                capture_output=True,
                timeout=TESSERACT_TIME,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise DataError(f"tesseract has not read it in {TESSERACT_TIME:.0f} s") from None
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())
            raise RecipeError(f"layout.ocr_languages = {self._languages!r}: tesseract ended with: {said[-300:]}")
        return _of_tsv(done.stdout.decode(errors="replace"), factor, dpi)


def _of_tsv(text: str, factor: float, dpi: float) -> list[Word]:
    """Tesseract's table of words as lines."""
    lines: dict[tuple[str, ...], list[tuple[str, Corners]]] = {}
    for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
        if row["level"] == "5" and row["text"].strip() and float(row["conf"]) >= 100 * LEAST_SCORE / 2:
            left, top, width, height = (float(row[name]) / factor for name in ("left", "top", "width", "height"))
            key = (row["block_num"], row["par_num"], row["line_num"])
            lines.setdefault(key, []).append((row["text"].strip(), (left, top, left + width, top + height)))
    return [
        _line(
            " ".join(word for word, _ in words),
            (
                min(box[0] for _, box in words),
                min(box[1] for _, box in words),
                max(box[2] for _, box in words),
                max(box[3] for _, box in words),
            ),
            dpi,
        )
        for words in lines.values()
    ]


def _line(text: str, box: Corners, dpi: float) -> Word:
    return Word(text=text.strip(), box=box, size=(box[3] - box[1]) * 72 / dpi)


def _reduced(picture: Image.Image, dpi: float) -> tuple[Image.Image, float]:
    """The picture at no more than `DPI`, and by how much it was reduced."""
    factor = min(1.0, DPI / dpi)
    if factor == 1.0:
        return picture, 1.0
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS), factor


def _rapidocr_version() -> str:
    try:
        version("onnxruntime")
        return version("rapidocr")
    except PackageNotFoundError as error:
        raise RecipeError(
            f'layout.ocr = "rapidocr": {error.name} is not installed; install pathor1[curation], or set "tesseract" '
            'or "none"'
        ) from None


def _tesseract_version() -> str:
    if shutil.which("tesseract") is None:
        raise RecipeError(
            'layout.ocr = "tesseract": there is no such program; install it (Debian: tesseract-ocr), or set "rapidocr"'
        )
    said = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, timeout=60, check=False)
    return (said.stdout or said.stderr).split("\n", 1)[0].removeprefix("tesseract ").strip()
