"""PDFs of every odd kind, which have to be reported or read, and may not take anything down."""

from __future__ import annotations

import io
from pathlib import Path

import pypdfium2
from reportlab.lib import pdfencrypt
from reportlab.pdfgen.canvas import Canvas

LETTER = (612.0, 792.0)
# (file's name, or page's id, reason)
DROPPED = {
    ("empty.pdf", "book unreadable"),
    ("not-a.pdf", "book unreadable"),
    ("truncated.pdf", "book unreadable"),
    ("encrypted.pdf", "book encrypted"),
    ("copy.pdf", "the same book twice"),
    ("p00002", "page unreadable"),
}
READ = {
    *("rotated.pdf", "huge.pdf", "blank.pdf", "no-words.pdf", "strange.pdf", "tiny.PDF", "many-words.pdf", "sound.pdf"),
}


def make(folder: Path) -> Path:
    """Writes them into a folder of folders."""
    (folder / "deeper").mkdir(parents=True)
    (folder / "empty.pdf").touch()
    (folder / "not-a.pdf").write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 20)
    whole = page("Figure 1 A whole one. It is cut.")
    (folder / "truncated.pdf").write_bytes(whole[: len(whole) // 3])
    (folder / "encrypted.pdf").write_bytes(page("secret", encrypt=pdfencrypt.StandardEncryption("user", "owner")))
    (folder / "deeper" / "rotated.pdf").write_bytes(rotated())
    (folder / "huge.pdf").write_bytes(page("A page of two hundred inches.", size=(14400.0, 14400.0)))
    (folder / "blank.pdf").write_bytes(page(""))
    (folder / "copy.pdf").write_bytes(page(""))
    (folder / "no-words.pdf").write_bytes(drawing())
    (folder / "strange.pdf").write_bytes(strange())
    (folder / "tiny.PDF").write_bytes(tiny())
    (folder / "many-words.pdf").write_bytes(many_words())
    (folder / "sound.pdf").write_bytes(sound())
    return folder


def page(text: str, *, size: tuple[float, float] = LETTER, encrypt: object = None) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=size, encrypt=encrypt, invariant=1)
    canvas.drawString(72, size[1] - 100, text)
    canvas.save()
    return buffer.getvalue()


def rotated() -> bytes:
    """Four pages turned by 0, 90, 180 and 270 degrees, each with a word near its own foot and an empty text block."""
    document = pypdfium2.PdfDocument(_pages(4))
    for number in range(4):
        found = document[number]
        found.set_rotation(90 * number)
        found.close()
    buffer = io.BytesIO()
    document.save(buffer)
    document.close()
    return buffer.getvalue()


def _pages(count: int) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=LETTER, invariant=1)
    for number in range(count):
        canvas.setFont("Helvetica", 20)
        canvas.drawString(100, 200, f"Turned{number}")
        canvas.rect(300, 500, 150, 100, fill=1)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def drawing() -> bytes:
    """A vector drawing and no letter."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=LETTER, invariant=1)
    canvas.setFillColorRGB(0.8, 0.2, 0.4)
    canvas.circle(300, 400, 120, fill=1)
    canvas.save()
    return buffer.getvalue()


def strange() -> bytes:
    """Letters over each other, off the page, of size 0 and 2,000, turned, and markup in a caption."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=LETTER, invariant=1)
    for size in (0.001, 6, 2000):
        canvas.setFont("Times-Roman", size)
        canvas.drawString(100, 400, "Figure 9-9-9-9 <script>alert(1)</script>")
    canvas.setFont("Times-Roman", 10)
    canvas.drawString(-5000, -5000, "off the page")
    canvas.rotate(37)
    for _ in range(50):
        canvas.drawString(200, 100, "Fig. 1 Fig. 2 to 999 Figs. 3, 4, and")
    canvas.save()
    return buffer.getvalue()


def tiny() -> bytes:
    """A page of 6 inches, and one of half a point."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=(432.0, 432.0), invariant=1)
    canvas.drawString(72, 300, "Figure 1-1 A caption without a figure.")
    canvas.showPage()
    canvas.setPageSize((400.0, 0.5))
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def many_words() -> bytes:
    """Twelve thousand words of two points."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=LETTER, invariant=1)
    canvas.setFont("Times-Roman", 2)
    for line in range(300):
        canvas.drawString(20, 780 - 2.4 * line, " ".join(f"w{line}-{word}" for word in range(40)))
    canvas.save()
    return buffer.getvalue()


def sound() -> bytes:
    """A figure with its caption, and a sentence about it: what the others may not take down."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=LETTER, invariant=1)
    canvas.setFillColorRGB(0.6, 0.3, 0.5)
    canvas.rect(150, 400, 300, 200, fill=1, stroke=0)
    canvas.setFillColorRGB(0, 0, 0)
    canvas.setFont("Times-Roman", 9)
    canvas.drawString(150, 385, "Figure 7 A sound figure.")
    canvas.setFont("Times-Roman", 11)
    canvas.drawString(100, 300, "All of this can be seen in Figure 7, and in no other figure.")
    canvas.save()
    return buffer.getvalue()
