"""What the sources of the tests of public sets are made of."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG of `size` = width, height; each seed has other pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
