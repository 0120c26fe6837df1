"""One PDF by pypdfium2: pages as upright pictures, the words of the text layer, and where pictures lie.

PDFium is C++ and reads files of strangers: this runs in a worker process, never in the driver. It is not thread-safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pathor1.data.images import LARGEST_RATIO
from pathor1.errors import DataError

Corners = tuple[float, float, float, float]

# A page with a shorter side in pixels holds nothing that could be read.
SHORTEST_SIDE = 16
# The most characters that are read of a page: a page of small print has 10,000.
MOST_CHARACTERS = 200_000
# PDFium's sign for a hyphen at the end of a line, which it takes out; and what it has for unknown glyphs.
_HYPHENS = "\x02\ufffe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word of the text layer. box: left, top, right, bottom in pixels of the picture; size: of the font, points."""

    text: str
    box: Corners
    size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page as it is shown: turned upright, cut to its crop box. Sizes in points; boxes in pixels of `picture`."""

    width_pt: float
    height_pt: float
    rotation: int
    dpi: float
    picture: Image.Image
    words: tuple[Word, ...]
    pictures: tuple[Corners, ...]


def sha256(path: Path) -> str:
    """Of the file's bytes."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            found.update(data)
    return found.hexdigest()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The document (pypdfium2.PdfDocument). Raises DataError for what is no PDF, is broken, or wants a password."""
    try:
        import pypdfium2
    except ImportError:
        raise DataError("pypdfium2 is not installed; install pathor1[curation]") from None
    try:
        document = pypdfium2.PdfDocument(path)
    except (pypdfium2.PdfiumError, OSError) as error:
        if "password" in str(error).lower():
            raise DataError("encrypted: it wants a password; take the password off, where you may") from error
        raise DataError(f"broken, or no PDF: {' '.join(str(error).split())}") from error
    try:
        yield document
    finally:
        document.close()


def read(document: Any, index: int, *, dpi: int, max_pixels: int) -> Page:
    """The page at `index`, from 0. Raises DataError where it cannot be rendered."""
    import pypdfium2

    try:
        page = document[index]
    except pypdfium2.PdfiumError as error:
        raise DataError(f"cannot be loaded: {' '.join(str(error).split())}") from error
    try:
        return _read(page, dpi=dpi, max_pixels=max_pixels)
    except (pypdfium2.PdfiumError, MemoryError, OverflowError) as error:
        raise DataError(f"cannot be rendered: {' '.join(str(error).split())}") from error
    finally:
        page.close()


def _read(page: Any, *, dpi: int, max_pixels: int) -> Page:
    width_pt, height_pt = page.get_size()
    if not (math.isfinite(width_pt) and math.isfinite(height_pt) and width_pt > 0 and height_pt > 0):
        raise DataError(f"a page of {width_pt:g} x {height_pt:g} points")
    scale = min(dpi / 72, math.sqrt(max_pixels / (width_pt * height_pt)))
    thin = max(width_pt, height_pt) > LARGEST_RATIO * min(width_pt, height_pt)
    if thin or min(width_pt, height_pt) * scale < SHORTEST_SIDE:
        raise DataError(f"too small or thin to be read: {width_pt:g} x {height_pt:g} points")
    bitmap = page.render(scale=scale, rev_byteorder=True)
    picture = bitmap.to_pil().convert("RGB")
    bitmap.close()
    placed = _Placed(page, *picture.size)
    return Page(
        width_pt=width_pt,
        height_pt=height_pt,
        rotation=int(page.get_rotation()),
        dpi=scale * 72,
        picture=picture,
        words=tuple(_words(page, placed)),
        pictures=tuple(_pictures(page, placed)),
    )


class _Placed:
    """From the PDF's own coordinates to pixels: crop box and rotation are PDFium's to know."""

    def __init__(self, page: Any, width: int, height: int) -> None:
        # An affine map, found by three points with PDFium's own function, which rounds to whole pixels: hence the
        # large canvas.
        import pypdfium2.raw as pdfium

        self._size = (width, height)
        fine = 1_000_000
        x, y = ctypes.c_int(), ctypes.c_int()
        found: list[tuple[float, float]] = []
        for point in ((0.0, 0.0), (1000.0, 0.0), (0.0, 1000.0)):
            pdfium.FPDF_PageToDevice(page, 0, 0, fine, fine, 0, *point, x, y)
            found.append((x.value / fine * width, y.value / fine * height))
        self._origin = found[0]
        self._across = [(found[1][axis] - found[0][axis]) / 1000 for axis in (0, 1)]
        self._up = [(found[2][axis] - found[0][axis]) / 1000 for axis in (0, 1)]

    def box(self, left: float, bottom: float, right: float, top: float) -> Corners | None:
        """A box in pixels, cut to the page; None where nothing of it is on the page."""
        # Written out: it is called for every letter of a book.
        if not math.isfinite(left + bottom + right + top):
            return None
        cut: list[float] = []
        for axis in (0, 1):
            across, up = self._across[axis], self._up[axis]
            x, y = (left * across, right * across), (bottom * up, top * up)
            cut += [self._origin[axis] + min(x) + min(y), self._origin[axis] + max(x) + max(y)]
        width, height = self._size
        box = (max(0.0, cut[0]), max(0.0, cut[2]), min(float(width), cut[1]), min(float(height), cut[3]))
        return box if box[2] > box[0] and box[3] > box[1] else None


def _words(page: Any, placed: _Placed) -> Iterator[Word]:
    """The words of the text layer in its order; characters off the page are passed over."""
    import pypdfium2.raw as pdfium

    layer = page.get_textpage()
    rectangle = pdfium.FS_RECTF()
    letters: list[tuple[str, Corners]] = []
    size = 0.0
    try:
        for index in range(min(layer.count_chars(), MOST_CHARACTERS)):
            code = pdfium.FPDFText_GetUnicode(layer, index)
            letter = "-" if chr(code) in _HYPHENS else chr(code)
            box = None
            if (
                not letter.isspace()
                and letter.isprintable()
                and pdfium.FPDFText_GetLooseCharBox(layer, index, rectangle)
            ):
                box = placed.box(rectangle.left, rectangle.bottom, rectangle.right, rectangle.top)
            if letters and (box is None or _apart(letters[-1][1], box)):
                yield _word(letters, size)
                letters = []
            if box is not None:
                letters.append((letter, box))
                size = float(pdfium.FPDFText_GetFontSize(layer, index))
    finally:
        layer.close()
    if letters:
        yield _word(letters, size)


def _apart(one: Corners, other: Corners) -> bool:
    """Whether two letters that follow each other stand on different lines, or with a space between them.

    Letters of a word that stands sideways are over each other; PDFium has a blank at the end of each line.
    """
    width, height = max(one[2] - one[0], 1.0), max(one[3] - one[1], 1.0)
    across = max(other[0] - one[2], one[0] - other[2])  # the gap; negative = they overlap
    down = max(other[1] - one[3], one[1] - other[3])
    level = abs(other[3] - one[3]) <= 0.7 * height and -height <= other[0] - one[0] and across <= 0.6 * height
    sideways = across <= -0.5 * min(width, other[2] - other[0]) and down <= 0.4 * width
    return not (level or sideways)


def _word(letters: list[tuple[str, Corners]], size: float) -> Word:
    lefts, tops, rights, bottoms = zip(*(box for _, box in letters), strict=True)
    box = (min(lefts), min(tops), max(rights), max(bottoms))
    return Word(text="".join(letter for letter, _ in letters), box=box, size=size)


def _pictures(page: Any, placed: _Placed) -> Iterator[Corners]:
    import pypdfium2
    import pypdfium2.raw as pdfium

    for each in page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE]):
        with contextlib.suppress(pypdfium2.PdfiumError):
            box = placed.box(*each.get_bounds())
            if box is not None:
                yield box
