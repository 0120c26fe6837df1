"""Pictures of pages, figures and panels: cut out, encoded, told apart."""

from __future__ import annotations

import hashlib
import io

from PIL import Image

from pathor1.curation.pdf import Corners


def encode(picture: Image.Image, form: str) -> bytes:
    """The picture as PNG or JPEG."""
    buffer = io.BytesIO()
    if form == "jpeg":
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def crop(picture: Image.Image, box: Corners) -> Image.Image:
    """What is in a box, in whole pixels, cut to the picture."""
    left, top = (max(0, round(value)) for value in box[:2])
    right, bottom = min(picture.width, max(left + 1, round(box[2]))), min(picture.height, max(top + 1, round(box[3])))
    return picture.crop((min(left, right - 1), min(top, bottom - 1), right, bottom))


def pixels_sha256(picture: Image.Image) -> str:
    """Of the pixels: the same picture in another file format is the same."""
    return hashlib.sha256(repr(picture.size).encode() + picture.convert("RGB").tobytes()).hexdigest()
