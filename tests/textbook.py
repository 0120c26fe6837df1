"""A small textbook, made as a PDF with all that is in it known: figures, panels, captions, and who refers to whom.

Sizes are in points from the top left of the page. Pages are two columns of letter paper; page 5 is a scan.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pypdfium2
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

WIDTH, HEIGHT = 612.0, 792.0
LEFT, RIGHT, TOP, GAP = 54.0, 558.0, 72.0, 18.0
COLUMN = (RIGHT - LEFT - GAP) / 2
COLUMNS = (LEFT, LEFT + COLUMN + GAP)
SCANNED_PAGE = 5
SCAN_DPI = 200

Corners = tuple[float, float, float, float]

# Words of a panel's caption, and the diagnosis that stands there with them. A normal colon has none.
DIAGNOSES = {
    "Neutrophils": "acute colitis",
    "Plasma cells": "chronic colitis",
    "granuloma": "granuloma of epithelioid macrophages",
    "Fibrosis": "Fibrosis with loss of glands",
    "Coagulative": "Coagulative necrosis of the kidney",
    "Caseous": "Caseous necrosis of a lymph node",
    "papillary": "papillary carcinoma",
    "follicular": "follicular carcinoma",
    "Irregular": "Adenocarcinoma of the colon",
    "Mucinous": "Mucinous type",
    "Hodgkin": "Hodgkin lymphoma",
}


@dataclass
class TrueFigure:
    """A figure as it was drawn. panels: label -> box; part: label -> words that only this panel's caption has."""

    number: str
    page: int
    box: Corners
    caption: str
    side: str
    panels: dict[str, Corners] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)


@dataclass
class Textbook:
    path: Path
    figures: list[TrueFigure] = field(default_factory=list)
    # (figure's number, panels, page, mention)
    references: set[tuple[str, tuple[str, ...], int, str]] = field(default_factory=set)
    sentences: dict[str, str] = field(default_factory=dict)  # mention -> its sentence


def tissue(width: int, height: int, seed: int, *, dark: bool = False) -> Image.Image:
    """Pink ground with purple nuclei: enough like a section for edges and colours to be as they are in one."""
    random = np.random.default_rng(seed)
    ground = random.normal(0, 1, (height // 8 + 2, width // 8 + 2))
    ground = np.asarray(Image.fromarray(ground.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    colour = np.array([90, 40, 110] if dark else [228, 160, 192], dtype=np.float32)
    picture = Image.fromarray((colour + 16 * ground[..., None] * [0.6, 1.0, 0.7]).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(width * height // 900):
        x, y, r = random.uniform(0, width), random.uniform(0, height), random.uniform(3, 8)
        draw.ellipse((x - r, y - r * 0.8, x + r, y + r * 0.8), fill=(96, 52, 132))
    return picture.filter(ImageFilter.GaussianBlur(0.8))


def composite(columns: int, rows: int, *, size: tuple[int, int], gutter: int, labels: str, seed: int) -> Image.Image:
    """Panels on white with white gutters, a letter on white in the corner of each."""
    width, height = size
    picture = Image.new("RGB", size, "white")
    for place in range(columns * rows):
        box = cell(columns, rows, size=(width, height), gutter=gutter, place=place)
        left, top, right, bottom = map(round, box)
        picture.paste(tissue(right - left, bottom - top, seed + place, dark=place % 2 == 1), (left, top))
        if place < len(labels):
            draw = ImageDraw.Draw(picture)
            draw.rectangle((left + 6, top + 6, left + 46, top + 50), fill="white")
            draw.text((left + 26, top + 28), labels[place], fill="black", font=ImageFont.load_default(36), anchor="mm")
    return picture


def cell(columns: int, rows: int, *, size: tuple[float, float], gutter: float, place: int) -> Corners:
    width = (size[0] - gutter * (columns - 1)) / columns
    height = (size[1] - gutter * (rows - 1)) / rows
    x, y = (place % columns) * (width + gutter), (place // columns) * (height + gutter)
    return x, y, x + width, y + height


class Maker:
    """Draws pages; y is counted from the top."""

    def __init__(self, path: Path) -> None:
        self.book = Textbook(path=path)
        self.canvas = Canvas(str(path), pagesize=(WIDTH, HEIGHT), invariant=1)
        self.page = 1

    def lines(
        self, text: str, x: float, y: float, width: float, *, font: str = "Times-Roman", size: float = 10
    ) -> float:
        """Sets text in lines, justified left; returns the y below it."""
        line: list[str] = []
        self.canvas.setFont(font, size)
        for word in [*text.split(), ""]:
            if word and stringWidth(" ".join([*line, word]), font, size) <= width:
                line.append(word)
                continue
            y += size * 1.2
            self.canvas.drawString(x, HEIGHT - y, " ".join(line))
            line = [word]
        return y + size * 0.3

    def heading(self, text: str, x: float, y: float) -> float:
        return self.lines(text, x, y, COLUMN, font="Helvetica-Bold", size=13) + 4

    def picture(self, picture: Image.Image, box: Corners) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        buffer.seek(0)
        left, top, right, bottom = box
        self.canvas.drawImage(ImageReader(buffer), left, HEIGHT - bottom, right - left, bottom - top)

    def caption(self, text: str, x: float, y: float, width: float) -> float:
        return self.lines(text, x, y, width, font="Helvetica", size=8)

    def figure(self, number: str, box: Corners, caption: str, side: str, **more: dict[str, object]) -> TrueFigure:
        made = TrueFigure(number=number, page=self.page, box=box, caption=caption, side=side, **more)
        self.book.figures.append(made)
        return made

    def refer(self, mention: str, sentence: str, *targets: tuple[str, tuple[str, ...]]) -> str:
        for number, panels in targets:
            self.book.references.add((number, panels, self.page, mention))
        self.book.sentences[mention] = sentence
        return sentence

    def furniture(self) -> None:
        self.canvas.setFont("Helvetica", 7)
        self.canvas.drawString(LEFT, HEIGHT - 36, f"CHAPTER 1   Patterns of Disease   {self.page}")

    def next_page(self) -> None:
        self.canvas.showPage()
        self.page += 1


FILLER = (
    "Normal tissue is the measure of every change that disease brings about. Cells of one kind look alike, lie in an "
    "order that their work explains, and divide where they are meant to. The eye learns this order before it learns "
    "what breaks it. Low power comes first, since architecture is lost at high power. "
)
MORE = (
    "Necrosis leaves ghosts of cells, and around it the body answers with inflammation. Neutrophils come within hours, "
    "macrophages within days, and fibrosis closes what cannot be mended. Each stage has its own colours on the slide, "
    "and several of them often lie side by side in one section. "
)


def make(path: Path) -> Textbook:
    """Writes the book and says what is in it."""
    maker = Maker(path)
    for page in (_one, _two, _three, _four, _five, _six, _seven):
        page(maker)
        maker.next_page()
    maker.canvas.save()
    _scan(path, SCANNED_PAGE)
    return maker.book


def _one(m: Maker) -> None:
    m.furniture()
    y = m.lines("Patterns of Disease", LEFT, TOP, RIGHT - LEFT, font="Helvetica-Bold", size=20) + 10
    left = m.heading("Ground rules", COLUMNS[0], y)
    left = m.lines(FILLER, COLUMNS[0], left, COLUMN)
    sentence = m.refer("Fig. 1-1", "The glands of the colon stand like test tubes in a rack (Fig. 1-1).", ("1-1", ()))
    left = m.lines(sentence + " " + MORE, COLUMNS[0], left + 6, COLUMN) + 10
    box = (COLUMNS[0], left, COLUMNS[0] + COLUMN, left + 170)
    m.picture(tissue(720, 500, 1), box)
    caption = (
        "Figure 1-1 Normal colon. Straight crypts of even width reach down to the muscularis mucosae. "
        "(Hematoxylin and eosin, x100.)"
    )
    m.figure("1-1", box, caption, "below")
    m.caption(caption, COLUMNS[0], box[3] + 4, COLUMN)
    m.lines((FILLER + MORE) * 3, COLUMNS[1], y, COLUMN)


def _two(m: Maker) -> None:
    m.furniture()
    box = (LEFT, TOP, RIGHT, TOP + 330)
    size = (1512, 990)
    m.picture(composite(2, 2, size=size, gutter=18, labels="ABCD", seed=10), box)
    scale = 504 / 1512
    panels = {
        label: tuple(
            value * scale + (LEFT, TOP)[axis % 2]
            for axis, value in enumerate(cell(2, 2, size=size, gutter=18, place=place))
        )
        for place, label in enumerate("ABCD")
    }
    caption = (
        "Figure 1-2 Four faces of inflammation. A, Neutrophils fill the crypts of an acute colitis. B, Plasma cells "
        "crowd the base of the mucosa in chronic colitis. C, A granuloma of epithelioid macrophages. D, Fibrosis with "
        "loss of glands. (A to D, hematoxylin and eosin.)"
    )
    parts = {"A": "Neutrophils", "B": "Plasma cells", "C": "granuloma", "D": "Fibrosis"}
    m.figure("1-2", box, caption, "below", panels=panels, parts=parts)
    y = m.caption(caption, LEFT, box[3] + 4, RIGHT - LEFT) + 14
    one = m.refer("Fig. 1-2A", "Acute inflammation is read from its neutrophils (Fig. 1-2A).", ("1-2", ("A",)))
    two = m.refer(
        "Fig. 1-2, B and C",
        "Chronic inflammation has plasma cells, and sometimes granulomas, as in Fig. 1-2, B and C, which are slower.",
        ("1-2", ("B", "C")),
    )
    m.lines(f"{FILLER}{one} {two} {MORE}", COLUMNS[0], y, COLUMN)
    three = m.refer(
        "Figures 1-2 to 1-4",
        "Taken together, Figures 1-2 to 1-4 show how far an insult may go.",
        ("1-2", ()), ("1-3", ()), ("1-4", ()),
    )  # fmt: skip
    m.lines(f"{MORE}{three} {FILLER}", COLUMNS[1], y, COLUMN)


def _three(m: Maker) -> None:
    m.furniture()
    caption = "Figure 1-3 Coagulative necrosis of the kidney. The outlines of tubules remain; their nuclei are gone."
    y = m.caption(caption, COLUMNS[0], TOP, COLUMN) + 4
    box = (COLUMNS[0], y, COLUMNS[0] + COLUMN, y + 150)
    m.picture(tissue(720, 440, 30), box)
    m.figure("1-3", box, caption, "above")
    one = m.refer("figure 1-3", "In the kidney, as figure 1-3 shows, outlines stay when nuclei have gone.", ("1-3", ()))
    m.lines(f"{one} {MORE}{FILLER}", COLUMNS[0], box[3] + 14, COLUMN)
    two = m.refer(
        "Figs. 1-1 and 1-4", "Compare the normal with the worst (Figs. 1-1 and 1-4).", ("1-1", ()), ("1-4", ())
    )
    m.lines(f"{FILLER}{MORE}{two} {FILLER}", COLUMNS[1], TOP, COLUMN)
    box = (LEFT, 520.0, LEFT + 330, 720.0)
    m.picture(tissue(990, 600, 40), box)
    caption = (
        "Figure 1-4 Caseous necrosis of a lymph node in tuberculosis. Structureless pink debris fills the centre, with "
        "a rim of macrophages and giant cells. (x40.)"
    )
    m.figure("1-4", box, caption, "beside")
    m.caption(caption, LEFT + 342, 530, RIGHT - LEFT - 342)


def _four(m: Maker) -> None:
    m.furniture()
    box = (LEFT, TOP, RIGHT, TOP + 200)
    size = (1512, 600)
    m.picture(composite(2, 1, size=size, gutter=24, labels="", seed=50), box)
    scale = 504 / 1512
    panels = {
        label: tuple(
            value * scale + (LEFT, TOP)[axis % 2]
            for axis, value in enumerate(cell(2, 1, size=size, gutter=24, place=place))
        )
        for place, label in enumerate(("left", "right"))
    }
    caption = (
        "Figure 1-5 Two tumors of the thyroid. Left: papillary carcinoma with clear, grooved nuclei. Right: follicular "
        "carcinoma that breaks through its capsule."
    )
    m.figure("1-5", box, caption, "below", panels=panels, parts={"left": "papillary", "right": "follicular"})
    y = m.caption(caption, LEFT, box[3] + 4, RIGHT - LEFT) + 14
    one = m.refer("Fig. 1-5", "Nuclei decide in the thyroid (see Fig. 1-5).", ("1-5", ()))
    y_left = m.lines(f"{FILLER}{one} {MORE}", COLUMNS[0], y, COLUMN) + 20
    # A picture of no number and no caption.
    box = (COLUMNS[0] + 40, y_left, COLUMNS[0] + 200, y_left + 110)
    m.picture(tissue(480, 330, 60, dark=True), box)
    m.figure("", box, "", "")
    m.lines((MORE + FILLER) * 2, COLUMNS[1], y, COLUMN)


def _five(m: Maker) -> None:
    m.furniture()
    one = m.refer("Fig. 1-6B", "Mucin lies in pools around the cells (Fig. 1-6B).", ("1-6", ("B",)))
    y = m.lines(FILLER + one, COLUMNS[0], TOP, COLUMN)
    m.lines(MORE + FILLER, COLUMNS[1], TOP, COLUMN)
    top = y + 110
    box = (LEFT, top, RIGHT, top + 220)
    size = (1512, 660)
    m.picture(composite(2, 1, size=size, gutter=24, labels="AB", seed=70), box)
    scale = 504 / 1512
    panels = {
        label: tuple(
            value * scale + (LEFT, top)[axis % 2]
            for axis, value in enumerate(cell(2, 1, size=size, gutter=24, place=place))
        )
        for place, label in enumerate("AB")
    }
    caption = (
        "Figure 1-6 Adenocarcinoma of the colon. (A) Irregular glands with dirty necrosis. (B) Mucinous type with "
        "floating clusters of cells."
    )
    m.figure("1-6", box, caption, "below", panels=panels, parts={"A": "Irregular", "B": "Mucinous"})
    y = m.caption(caption, LEFT, box[3] + 6, RIGHT - LEFT) + 16
    m.lines(MORE + MORE, COLUMNS[0], y, COLUMN)
    m.lines(FILLER + FILLER, COLUMNS[1], y, COLUMN)


def _six(m: Maker) -> None:
    m.furniture()
    box = (LEFT, TOP, RIGHT, 726.0)
    m.picture(tissue(1008, 1308, 80), box)
    caption = (
        "Figure 1-7 Hodgkin lymphoma, nodular sclerosis type. Bands of collagen divide the node, and lacunar cells lie "
        "within the nodules."
    )
    m.figure("1-7", box, caption, "next_page")


def _seven(m: Maker) -> None:
    m.furniture()
    y = m.caption(m.book.figures[-1].caption, LEFT, TOP, RIGHT - LEFT) + 16
    one = m.refer("Fig. 1-7", "Bands of collagen give the type its name (Fig. 1-7).", ("1-7", ()))
    left = m.lines(f"{FILLER}{one} {MORE}", COLUMNS[0], y, COLUMN) + 16
    left = m.caption("Table 1-1 Stages of an infarct", COLUMNS[0], left, COLUMN)
    for row in ("Hours    Wavy fibers, edema", "Days     Neutrophils, then macrophages", "Weeks    Collagen"):
        left = m.lines(row, COLUMNS[0], left, COLUMN, size=9)
    m.lines((FILLER + MORE) * 3, COLUMNS[1], y, COLUMN)


def _scan(path: Path, number: int) -> None:
    """Puts a picture of a page in the place of the page: grey-white paper with noise, and no text layer."""
    document = pypdfium2.PdfDocument(path)
    page = document[number - 1]
    picture = page.render(scale=SCAN_DPI / 72, rev_byteorder=True).to_pil().convert("RGB")
    page.close()
    noise = np.random.default_rng(5).normal(0, 3, (picture.height, picture.width, 1))
    picture = Image.fromarray((np.asarray(picture) * 0.97 + noise).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=(WIDTH, HEIGHT), invariant=1)
    canvas.drawImage(ImageReader(picture), 0, 0, WIDTH, HEIGHT)
    canvas.save()
    scan = pypdfium2.PdfDocument(buffer.getvalue())
    document.del_page(number - 1)
    document.import_pages(scan, [0], number - 1)
    whole = io.BytesIO()
    document.save(whole)
    scan.close()
    document.close()
    path.write_bytes(whole.getvalue())
