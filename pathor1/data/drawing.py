"""Draws small pathology-like pictures: glands, sheets of cells, keratin, mucin, specimens, stains and signals.

They stand for what a pathologist looks at; they are not tissue. Every picture is a pure function of the generator
it is given. Shapes are drawn at twice the size and averaged down, in coordinates from 0 to 1.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float64]
Colour = tuple[int, int, int]

_OVERSAMPLING = 2
_CORNERS = np.linspace(0.0, 2.0 * np.pi, 12, endpoint=False)
_COS, _SIN = np.cos(_CORNERS), np.sin(_CORNERS)

# Haematoxylin and eosin.
_NUCLEUS, _CYTOPLASM, _STROMA = (84, 54, 134), (206, 140, 186), (240, 192, 212)
_LUMEN, _MUCIN, _KERATIN, _KERATIN_PALE = (250, 246, 249), (208, 216, 240), (238, 92, 110), (252, 168, 176)
# Diaminobenzidine (brown) on a haematoxylin counterstain (blue).
_DAB, _BLUE_NUCLEUS, _PALE_TISSUE = (118, 68, 30), (112, 128, 184), (232, 230, 236)


class Canvas:
    """A square picture in the making. `difficulty` (0-1) says how far looks vary and how far classes overlap."""

    def __init__(self, rng: np.random.Generator, size: int, difficulty: float, ground: Colour) -> None:
        self.rng = rng
        self.size = size
        self.difficulty = difficulty
        self._side = size * _OVERSAMPLING
        # One shift for the whole picture: two laboratories never stain alike.
        self._stain = rng.normal(0.0, 5.0 + 14.0 * difficulty, 3)
        self._image = Image.new("RGB", (self._side, self._side), self._tint(np.asarray([ground]))[0])
        self._draw = ImageDraw.Draw(self._image)

    def between(self, easy: tuple[float, float], hard: tuple[float, float]) -> float:
        """A number from `easy` at difficulty 0, from `hard` at 1, and from between the two otherwise."""
        low = easy[0] + (hard[0] - easy[0]) * self.difficulty
        high = easy[1] + (hard[1] - easy[1]) * self.difficulty
        return float(self.rng.uniform(low, high))

    def _tint(self, colours: Floats) -> list[Colour]:
        shifted = np.clip(colours + self._stain, 0, 255).astype(int)
        return [(r, g, b) for r, g, b in shifted.tolist()]

    def blobs(
        self,
        centres: Floats,
        radii: Floats | float,
        colour: Colour | NDArray[np.int_],
        *,
        stretch: float = 1.0,
        angles: Floats | float | None = None,
        ragged: float = 0.08,
        shades: float = 8.0,
    ) -> None:
        """Round to ragged shapes, one for each row of `centres` (n, 2).

        `stretch`: length over width, along `angles` (radians; at random by default). `ragged`: how far the outline
        strays, in radii. `shades`: standard deviation of the colour from shape to shape.
        """
        count = len(centres)
        if count == 0:
            return
        if angles is None:
            angles = self.rng.uniform(0.0, np.pi, count)
        turn = np.broadcast_to(np.asarray(angles), (count,))[:, None]
        outline = np.broadcast_to(np.asarray(radii), (count,))[:, None] * (
            1.0 + ragged * self.rng.standard_normal((count, len(_CORNERS)))
        )
        long, short = outline * _COS * np.sqrt(stretch), outline * _SIN / np.sqrt(stretch)
        x = centres[:, :1] + long * np.cos(turn) - short * np.sin(turn)
        y = centres[:, 1:] + long * np.sin(turn) + short * np.cos(turn)
        corners = (np.stack([x, y], axis=-1) * self._side).reshape(count, -1).tolist()
        fills = np.broadcast_to(np.asarray(colour), (count, 3)) + shades * self.rng.standard_normal((count, 1))
        for points, fill in zip(corners, self._tint(fills), strict=True):
            self._draw.polygon(points, fill=fill)

    def field(self, spacing: float, jitter: float = 0.25) -> Floats:
        """Points (n, 2) all over the picture: a turned grid, shaken. `jitter` in spacings."""
        steps = np.arange(-0.75, 0.75, spacing)
        x, y = (axis.ravel() for axis in np.meshgrid(steps, steps))
        turn = self.rng.uniform(0.0, np.pi)
        points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1) + 0.5
        points += spacing * jitter * self.rng.standard_normal(points.shape)
        return points[np.all((points > -0.05) & (points < 1.05), axis=1)]

    def scattered(self, count: int, distance: float, margin: float) -> Floats:
        """Up to `count` points (n, 2) at least `distance` apart and `margin` from the edge."""
        kept: list[tuple[float, float]] = []
        for x, y in self.rng.uniform(margin, 1.0 - margin, (12 * count, 2)).tolist():
            if len(kept) < count and all((x - u) ** 2 + (y - v) ** 2 >= distance**2 for u, v in kept):
                kept.append((x, y))
        return np.asarray(kept)

    def finish(self) -> bytes:
        """The picture as PNG, after dust, uneven light, white balance and the camera's noise."""
        rng, hard = self.rng, self.difficulty
        dust = int(rng.poisson(3.0 * hard))
        self.blobs(rng.random((dust, 2)), rng.uniform(0.01, 0.035, dust), (90, 80, 80), ragged=0.3, shades=40.0)
        pixels = np.asarray(self._image.reduce(_OVERSAMPLING), dtype=np.float32)
        across = np.linspace(-1.0, 1.0, self.size, dtype=np.float32)
        slope = rng.normal(0.0, 0.03 + 0.07 * hard, 2).astype(np.float32)
        light = 1.0 + slope[0] * across[:, None] + slope[1] * across[None, :]
        balance = (1.0 + rng.normal(0.0, 0.02 + 0.05 * hard, 3) + rng.normal(0.0, 0.03 + 0.07 * hard)).astype(
            np.float32
        )
        noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(1.5 + 10.0 * hard)
        pixels = np.clip(pixels * light[:, :, None] * balance + noise, 0.0, 255.0).astype(np.uint8)
        buffer = io.BytesIO()
        # Noise does not compress: a higher level only costs time.
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def _around(centre: Floats, radius: float, count: int, start: float = 0.0) -> tuple[Floats, Floats]:
    """Points (count, 2) on a circle, and the angle of each."""
    angles = start + np.linspace(0.0, 2.0 * np.pi, count, endpoint=False)
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), angles


def _adenoma(canvas: Canvas) -> None:
    """Glands: a ring of nuclei about an open lumen, in pink stroma."""
    rng = canvas.rng
    stroma = canvas.field(0.2)
    canvas.blobs(stroma, 0.02, _NUCLEUS, stretch=3.0)
    for centre in canvas.scattered(5, 0.4, 0.12):
        radius = canvas.between((0.19, 0.24), (0.14, 0.24))
        lumen = canvas.between((0.45, 0.6), (0.2, 0.5))
        canvas.blobs(centre[None], radius, _CYTOPLASM, stretch=1.1)
        canvas.blobs(centre[None], radius * lumen, _LUMEN, stretch=1.2)
        ring, angles = _around(centre, radius * 0.82, int(rng.integers(11, 15)), rng.uniform(0.0, 1.0))
        canvas.blobs(ring, 0.034, _NUCLEUS, stretch=1.4, angles=angles)


def _lymphoma(canvas: Canvas) -> None:
    """A sheet of small dark cells, one beside the other."""
    cells = canvas.field(canvas.between((0.075, 0.085), (0.085, 0.12)), jitter=0.18)
    canvas.blobs(cells, canvas.between((0.031, 0.036), (0.028, 0.036)), _NUCLEUS, shades=14.0)


def _squamous(canvas: Canvas) -> None:
    """Sheets of plump cells with keratin pearls: red-pink, in layers like an onion."""
    rng = canvas.rng
    cells = canvas.field(0.15)
    canvas.blobs(cells, 0.08, _CYTOPLASM, shades=6.0)
    canvas.blobs(cells, 0.03, _NUCLEUS)
    pearls = int(rng.integers(1, 3)) if rng.random() < canvas.difficulty else int(rng.integers(2, 4))
    for centre in canvas.scattered(pearls, 0.45, 0.2):
        radius = canvas.between((0.22, 0.28), (0.12, 0.22))
        for layer, share in enumerate((1.0, 0.8, 0.6, 0.4, 0.2)):
            colour = _KERATIN_PALE if layer % 2 else _KERATIN
            canvas.blobs(centre[None], radius * share, colour, stretch=1.15, ragged=0.05)


def _mucinous(canvas: Canvas) -> None:
    """Lakes of pale blue mucin with a few clusters of cells afloat."""
    rng = canvas.rng
    canvas.blobs(canvas.field(0.16), 0.022, _NUCLEUS, stretch=3.0)
    lakes = canvas.scattered(3, 0.35, 0.2)
    radii = np.asarray([canvas.between((0.27, 0.34), (0.16, 0.28)) for _ in lakes])
    canvas.blobs(lakes, radii, _MUCIN, stretch=1.3, ragged=0.1)
    for centre in lakes:
        cluster = centre + 0.045 * rng.standard_normal((int(rng.integers(3, 7)), 2))
        canvas.blobs(cluster, 0.045, _CYTOPLASM)
        canvas.blobs(cluster, 0.026, _NUCLEUS)


def _lipoma(canvas: Canvas) -> None:
    """A cut specimen of yellow fat in lobules, on a cloth."""
    rng = canvas.rng
    centre = np.asarray([0.5, 0.5]) + rng.normal(0.0, 0.04, 2)
    canvas.blobs(centre[None], 0.41, (190, 150, 70), stretch=1.2, ragged=0.04)
    lobules = centre + rng.uniform(-0.25, 0.25, (14, 2))
    canvas.blobs(lobules, rng.uniform(0.08, 0.14, 14), (236, 204, 96), shades=12.0)
    bruise = canvas.between((0.0, 0.05), (0.05, 0.2))
    canvas.blobs(centre[None] + rng.normal(0.0, 0.12, 2), bruise, (120, 60, 40), ragged=0.2)


def _melanoma(canvas: Canvas) -> None:
    """A piece of skin with a ragged, unevenly dark patch, on a cloth."""
    rng = canvas.rng
    centre = np.asarray([0.5, 0.5]) + rng.normal(0.0, 0.04, 2)
    canvas.blobs(centre[None], 0.41, (226, 182, 156), stretch=1.2, ragged=0.04)
    size = canvas.between((0.16, 0.22), (0.09, 0.18))
    patch = centre + size * 0.5 * rng.standard_normal((5, 2))
    darkness = canvas.between((40.0, 70.0), (50.0, 120.0))
    brown = (int(darkness * 1.3), int(darkness * 0.85), int(darkness * 0.75))
    canvas.blobs(patch, size * rng.uniform(0.5, 1.0, 5), brown, ragged=0.22, shades=14.0)


def _stained(canvas: Canvas, share: float) -> None:
    cells = canvas.field(0.14)
    canvas.blobs(cells, 0.065, (214, 214, 228), shades=5.0)
    brown = canvas.rng.random(len(cells)) < share
    colours = np.where(brown[:, None], np.asarray(_DAB), np.asarray(_BLUE_NUCLEUS))
    canvas.blobs(cells, canvas.between((0.046, 0.052), (0.036, 0.052)), colours, stretch=1.2, shades=16.0)


def _positive(canvas: Canvas) -> None:
    """Most nuclei brown."""
    _stained(canvas, canvas.between((0.7, 1.0), (0.4, 0.8)))


def _negative(canvas: Canvas) -> None:
    """Nuclei blue, of the counterstain alone."""
    _stained(canvas, canvas.between((0.0, 0.05), (0.0, 0.3)))


def _benign(canvas: Canvas) -> None:
    """A smear of wide, pale, polygonal cells, each with a small round nucleus."""
    cells = canvas.scattered(7, 0.27, 0.08)
    pink = canvas.rng.random(len(cells)) < 0.4
    colours = np.where(pink[:, None], np.asarray((236, 190, 196)), np.asarray((172, 212, 208)))
    canvas.blobs(cells, 0.17, colours, ragged=0.12)
    canvas.blobs(cells, canvas.between((0.034, 0.042), (0.04, 0.065)), (74, 66, 120), ragged=0.04)


def _malignant(canvas: Canvas) -> None:
    """A smear of cells that are nearly all nucleus: large, dark, ragged, of uneven size."""
    cells = canvas.scattered(8, 0.22, 0.1)
    size = canvas.between((0.1, 0.12), (0.07, 0.1))
    radii = size * canvas.rng.uniform(0.75, 1.25, len(cells))
    canvas.blobs(cells, radii * 1.35, (172, 192, 206), ragged=0.12)
    canvas.blobs(cells, radii, (62, 48, 104), stretch=1.25, ragged=0.14, shades=14.0)


def _signals(canvas: Canvas, fewest: int, most: int) -> None:
    rng = canvas.rng
    glow = int(canvas.between((150.0, 190.0), (90.0, 170.0)))
    nuclei = canvas.scattered(4, 0.42, 0.2)
    canvas.blobs(nuclei, 0.21, (34, 44, glow), stretch=1.15, ragged=0.04)
    for centre in nuclei:
        red = centre + rng.uniform(-0.12, 0.12, (int(rng.integers(fewest, most + 1)), 2))
        green = centre + rng.uniform(-0.12, 0.12, (2, 2))
        canvas.blobs(red, 0.026, (245, 50, 60), ragged=0.05)
        canvas.blobs(green, 0.026, (60, 235, 90), ragged=0.05)


def _amplified(canvas: Canvas) -> None:
    """Nuclei with a cloud of red signals against two green ones."""
    fewest = round(canvas.between((9, 9), (4, 4)))
    _signals(canvas, fewest, fewest + 5)


def _diploid(canvas: Canvas) -> None:
    """Nuclei with two red and two green signals."""
    _signals(canvas, 2, 2 + round(2 * canvas.difficulty))


_CLOTH: tuple[Colour, ...] = ((62, 104, 138), (70, 128, 112), (150, 152, 156), (44, 50, 62))
_GROUNDS: dict[str, Sequence[Colour]] = {
    "histopathology": (_STROMA,),
    "gross": _CLOTH,
    "ihc": (_PALE_TISSUE,),
    "cytology": ((238, 240, 238), (228, 234, 240)),
    "fish": ((8, 8, 18),),
}
# Class -> subfield and how it is drawn. Neighbours two by two are siblings: the same subfield, told apart by looking.
CLASSES: dict[str, tuple[str, Callable[[Canvas], None]]] = {
    "adenoma": ("histopathology", _adenoma),
    "lymphoma": ("histopathology", _lymphoma),
    "squamous": ("histopathology", _squamous),
    "mucinous": ("histopathology", _mucinous),
    "lipoma": ("gross", _lipoma),
    "melanoma": ("gross", _melanoma),
    "negative": ("ihc", _negative),
    "positive": ("ihc", _positive),
    "benign": ("cytology", _benign),
    "malignant": ("cytology", _malignant),
    "diploid": ("fish", _diploid),
    "amplified": ("fish", _amplified),
}


def picture(name: str, rng: np.random.Generator, *, size: int, difficulty: float) -> bytes:
    """A PNG of `size` x `size` pixels of one class of `CLASSES`."""
    subfield, draw = CLASSES[name]
    grounds = _GROUNDS[subfield]
    canvas = Canvas(rng, size, difficulty, grounds[int(rng.integers(len(grounds)))])
    draw(canvas)
    return canvas.finish()
