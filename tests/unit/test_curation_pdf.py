"""A PDF's pages: words and pictures where they are on the page picture, whatever the page is turned and cut by."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from odd_pdfs import page, rotated
from PIL import Image
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from pathor1.curation import pdf
from pathor1.curation.pages import Book, expand, kind, probe
from pathor1.errors import DataError


def read(data: bytes, tmp_path: Path, index: int = 0, **settings: int) -> pdf.Page:
    path = tmp_path / "a.pdf"
    path.write_bytes(data)
    with pdf.opened(path) as document:
        return pdf.read(document, index, **{"dpi": 144, "max_pixels": 30_000_000, **settings})


def darkest(found: pdf.Page, box: pdf.Corners) -> int:
    return int(np.asarray(found.picture.convert("L").crop(tuple(round(value) for value in box))).min())


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_words_are_where_their_ink_is_on_turned_pages(turn: int, tmp_path: Path) -> None:
    found = read(rotated(), tmp_path, turn)
    assert found.rotation == 90 * turn
    assert found.picture.size == ((1224, 1584) if turn % 2 == 0 else (1584, 1224))
    (word,) = found.words
    assert word.text == f"Turned{turn}"
    assert word.size == 20
    assert darkest(found, word.box) < 60
    # Nothing of the word is outside its box; the black rectangle is elsewhere.
    grey = np.asarray(found.picture.convert("L")).copy()
    left, top, right, bottom = (round(value) for value in word.box)
    grey[top - 2 : bottom + 2, left - 2 : right + 2] = 255
    rows, columns = np.nonzero(grey < 128)
    assert abs((columns.max() - columns.min()) * (rows.max() - rows.min()) - 300 * 200) < 2500


def test_a_page_that_no_later_stage_could_decode_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=(20, 2400))
    canvas.drawString(1, 1, "x")
    canvas.save()
    with pytest.raises(DataError, match="too small or thin to be read: 20 x 2400 points"):
        read(buffer.getvalue(), tmp_path)


def test_a_crop_box_is_the_page(tmp_path: Path) -> None:
    document = pypdfium2.PdfDocument(page("Here"))
    first = document[0]
    first.set_cropbox(60, 600, 360, 780)
    first.close()
    buffer = io.BytesIO()
    document.save(buffer)
    document.close()
    found = read(buffer.getvalue(), tmp_path)
    assert found.picture.size == (600, 360)
    (word,) = found.words
    assert darkest(found, word.box) < 90
    assert word.box[0] == pytest.approx(24, abs=2)


def test_pictures_words_and_kinds(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=(612, 792), invariant=1)
    scan = ImageReader(Image.new("RGB", (60, 80), "beige"))
    canvas.drawImage(scan, 72, 400, 144, 72)
    canvas.drawString(72, 300, "Two words")
    canvas.showPage()
    canvas.drawImage(scan, 0, 0, 612, 792)
    canvas.showPage()
    canvas.showPage()
    canvas.save()
    found = [read(buffer.getvalue(), tmp_path, index) for index in range(3)]
    assert [kind(each) for each in found] == ["born_digital", "scanned", "blank"]
    assert [[round(value) for value in box] for box in found[0].pictures] == [[144, 640, 432, 784]]
    assert [word.text for word in found[0].words] == ["Two", "words"]


def test_a_page_is_rendered_at_fewer_dots_an_inch_where_it_would_be_too_large(tmp_path: Path) -> None:
    found = read(page("x", size=(6120, 7920)), tmp_path, max_pixels=1_000_000)
    assert found.picture.width * found.picture.height <= 1_002_000
    assert found.dpi == pytest.approx(72 * (1_000_000 / (6120 * 7920)) ** 0.5)


def test_files_that_are_no_books(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no PDF there"):
        expand([str(tmp_path)])
    path = tmp_path / "Case 1 (2nd ed.).PDF"
    path.write_bytes(page("text"))
    assert expand([str(tmp_path), str(path), str(tmp_path / "*.PDF")]) == [path]
    book = probe(path)
    assert isinstance(book, Book)
    assert (book.id, book.pages) == (f"case-1-2nd-ed-{book.sha256[:8]}", 1)
