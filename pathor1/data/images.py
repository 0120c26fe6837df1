"""Encoded bytes -> pixels within a budget; bombs, broken files and surprises are refused with a reason."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

from pathor1.errors import DataError

# What pictures come in. PIL reads more, some of it by running other programs (EPS: Ghostscript), which files of others
# must not reach.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000")
# A picture this large is not decoded at all: 150 megapixels are 450 MB of RGB. Pathology pictures that are questioned
# are crops; whole slides come as tiles.
LARGEST_PIXELS = 150_000_000
# Thinner strips are no pictures, and processors of vision-language models refuse them (Qwen2.5-VL: 200).
LARGEST_RATIO = 100
# A side shorter than this cannot be cut into one 28-pixel image token without being mostly invention.
SHORTEST_SIDE = 4

# What PIL's readers raise on broken files, beside its own DecompressionBombError.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error,
)  # fmt: skip


def decode(data: bytes, *, min_pixels: int, max_pixels: int) -> Image.Image:
    """An upright RGB picture of between `min_pixels` and `max_pixels` pixels, its aspect ratio kept.

    Where no size of that ratio is within the budget, the largest below `max_pixels` is taken. Transparency is laid on
    white, grey of more than 8 bits is scaled so that its brightest pixel is white, of an animation or a stack the first
    frame is taken. Raises DataError for bytes that are no picture, a truncated one, or one too large or too thin to be
    one.
    """
    picture = _open(data)
    size = fitted_size(*picture.size, min_pixels=min_pixels, max_pixels=max_pixels)
    # A JPEG of more than twice that size is decoded at half, a quarter or an eighth of its own, never below what is
    # wanted: by libjpeg, from fewer of its frequencies, in a third of the time.
    picture.draft(None, size)
    stored = picture.size
    upright = _upright(picture)
    if (stored[0] < stored[1]) != (upright.width < upright.height):
        size = size[::-1]
    return upright if size == upright.size else upright.resize(size, Image.Resampling.BICUBIC)


def decode_for(data: bytes, side: int) -> Image.Image:
    """An upright RGB picture as `decode` makes it, for who needs some `side` pixels of its shorter side.

    A JPEG comes at half, a quarter or an eighth of its own size where both of its sides still have `side` pixels then;
    everything else as large as it is. Raises DataError as `decode` does.
    """
    picture = _open(data)
    picture.draft(None, (side, side))
    return _upright(picture)


def fit(data: bytes, *, min_pixels: int, max_pixels: int) -> bytes:
    """The picture as `decode` gives it, as a BMP: plain pixels, which whoever opens them has only to copy.

    Decoded once, then: a PNG would be a fifth smaller and cost more time than all the rest, twice.
    """
    buffer = io.BytesIO()
    decode(data, min_pixels=min_pixels, max_pixels=max_pixels).save(buffer, "BMP")
    return buffer.getvalue()


def fitted_size(width: int, height: int, *, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size within the budget that is nearest to a picture's own, in pixels; its aspect ratio is kept.

    Example: 1000 x 500 with at most 125,000 pixels -> (500, 250).
    """
    pixels = width * height
    if min_pixels <= pixels <= max_pixels:
        return width, height
    if pixels < min_pixels:
        larger = _root_above(min_pixels * width, height), _root_above(min_pixels * height, width)
        if larger[0] * larger[1] <= max_pixels:
            return larger
    return max(1, math.isqrt(max_pixels * width // height)), max(1, math.isqrt(max_pixels * height // width))


def _root_above(numerator: int, denominator: int) -> int:
    """The square root of a fraction, rounded up: in whole numbers, as 28 must not become 28.000000000000004 and 29."""
    return math.isqrt(-(-numerator // denominator) - 1) + 1


def _open(data: bytes) -> Image.Image:
    """The picture's header, read; no pixel is decoded yet."""
    if not data:
        raise DataError("an empty picture: 0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the one that counts
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"a picture too large to be decoded ({error}); cut it into tiles") from error
    except _BROKEN as error:
        raise DataError(f"{len(data)} bytes that are no picture, beginning with {data[:8]!r}") from error
    width, height = picture.size
    if width * height > LARGEST_PIXELS:
        raise DataError(f"a picture of {width} x {height} pixels; {LARGEST_PIXELS} are the most, cut it into tiles")
    if min(width, height) < SHORTEST_SIDE or max(width, height) > LARGEST_RATIO * min(width, height):
        raise DataError(f"a picture of {width} x {height} pixels is too thin to be one")
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    """Decodes the pixels: RGB, turned as EXIF says."""
    try:
        picture.load()
        return _rgb(_turned(picture))
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise DataError(f"a {picture.format} picture that cannot be decoded: {reason}") from error


def _turned(picture: Image.Image) -> Image.Image:
    """The picture turned as EXIF says; as it is where that cannot be read: the pixels are sound all the same."""
    with contextlib.suppress(*_BROKEN):
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bits(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as 8: cameras fill 10, 12 or 16 of them and do not say which."""
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32), posinf=0.0, neginf=0.0).clip(min=0.0)
    brightest = float(values.max())
    return Image.fromarray((values * (255.0 / brightest if brightest > 0 else 0.0)).astype(np.uint8))
