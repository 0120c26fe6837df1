"""Questions on a real immunohistochemistry section: scikit-image's `ihc.png`, which comes in its wheel.

The section is colonic mucosa stained for FHL2 with DAB (brown) and counterstained with haematoxylin (512 x 512 pixels,
no known copyright restrictions). What is asked, colour deconvolution answers: how much of a tile is DAB-positive, and
which of two tiles is stained more strongly. Splits are disjoint bands of the section: no pixel is in two.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathor1.data.exercises import brief
from pathor1.data.rendered import check_counts
from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample, write

SOURCE = "ihc"
# Columns of the section that belong to each split; 8 pixels between two splits belong to none.
REGIONS = {"warm_start": (0, 184), "train": (192, 344), "test": (352, 512)}
SPLITS = tuple(REGIONS)  # a split's place is part of its seed: do not reorder
# DAB optical density above which a pixel counts as positive: parts the brown crypts from the blue stroma by eye.
POSITIVE_DENSITY = 0.07
# Shares of positive pixels; tiles of every band are found in every split.
BANDS = ((0.0, 0.05), (0.05, 0.3), (0.3, 0.6), (0.6, 1.0))
BAND_TEXTS = ("under 5 %", "5 to 30 %", "30 to 60 %", "over 60 %")
# Two tiles are compared only where their shares of positive pixels differ by this much: no answer is a matter of taste.
LEAST_DIFFERENCE = 0.15
# A share this near to a band's border is not asked about.
BORDER = 0.01
AMOUNT_QUESTION = "How much is stained brown?"
COMPARE_QUESTION = "Which tile is stained more?"
COMPARE_OPTIONS = ("the first", "the second")

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the section


def section() -> NDArray[np.uint8]:
    """The section, [512, 512, 3] RGB. Raises DataError where scikit-image's wheel does not hold it."""
    resource = files("skimage") / "data" / "ihc.png"
    try:
        data = resource.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{resource}: not there; reinstall scikit-image from its wheel, which holds it") from error
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def positive_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[H, W, 3] RGB -> [H, W]: where DAB is, by colour deconvolution (Ruifrok and Johnston 2001)."""
    from skimage.color import rgb2hed

    densities = cast(NDArray[np.float64], rgb2hed(pixels))
    return densities[..., 2] > POSITIVE_DENSITY


def tiles(out: Path, *, seed: int, counts: Mapping[str, int], size: int = 56) -> dict[str, Path]:
    """Writes one Parquet file a split into `out` and returns them by split.

    counts: questions by split, any of SPLITS, about half of each kind; size: pixels of a tile's side. Raises DataError
    for numbers that do not fit.
    """
    for split in counts:
        if split not in REGIONS:
            raise DataError(f"split {split!r} is none of {', '.join(SPLITS)}")
    check_counts(seed, counts)
    narrowest = min(right - left for left, right in REGIONS.values())
    if not 28 <= size <= narrowest:
        raise DataError(f"size is {size} pixels, it has to be from 28 to {narrowest}")
    pixels = section()
    positive = positive_pixels(pixels)
    paths: dict[str, Path] = {}
    for split, count in counts.items():
        paths[split] = Path(out) / f"{split}.parquet"
        write(samples(pixels, positive, seed=seed, split=split, count=count, size=size), paths[split])
    return paths


def samples(
    pixels: NDArray[np.uint8], positive: NDArray[np.bool_], *, seed: int, split: str, count: int, size: int
) -> Iterator[Sample]:
    """The questions of one split. Each has its own random stream: (seed, split, index) alone makes it."""
    for index in range(count):
        rng = np.random.default_rng((seed, SPLITS.index(split), index))
        make = _amount if index % 2 == 0 else _comparison
        yield Sample(
            id=f"{SOURCE}/{seed}/{split}/{index}",
            source=SOURCE,
            task="mcq",
            subfield="ihc",
            split=split,
            license="no known copyright restrictions (scikit-image, ihc.png)",
            **make(rng, pixels, positive, split, size),
        )


def _amount(
    rng: np.random.Generator, pixels: NDArray[np.uint8], positive: NDArray[np.bool_], split: str, size: int
) -> dict[str, Any]:
    """How much of one tile is positive. The band is drawn first, so that the four are equally often right."""
    wanted = int(rng.integers(len(BANDS)))
    low, high = BANDS[wanted]
    box, share = _tile(rng, positive, split, size, low + BORDER * (low > 0), high - BORDER * (high < 1))
    order = rng.permutation(len(BANDS)).tolist()
    letter = LETTERS[order.index(wanted)]
    return {
        "question": AMOUNT_QUESTION,
        "options": tuple(BAND_TEXTS[i] for i in order),
        "answer": letter,
        "images": (_encode(rng, pixels, box),),
        "explanation": brief(BAND_TEXTS[wanted], letter),
        "meta": {"kind": "amount", "boxes": [box], "positive_share": [round(share, 4)]},
    }


def _comparison(
    rng: np.random.Generator, pixels: NDArray[np.uint8], positive: NDArray[np.bool_], split: str, size: int
) -> dict[str, Any]:
    """Which of two tiles has the larger positive share."""
    weak, weak_share = _tile(rng, positive, split, size, 0.0, 0.4)
    strong, strong_share = _tile(rng, positive, split, size, weak_share + LEAST_DIFFERENCE, 1.0)
    first_is_strong = bool(rng.integers(2))
    boxes, shares = ([strong, weak], [strong_share, weak_share])
    if not first_is_strong:
        boxes, shares = boxes[::-1], shares[::-1]
    order = rng.permutation(2).tolist()
    right = 0 if first_is_strong else 1
    letter = LETTERS[order.index(right)]
    return {
        "question": COMPARE_QUESTION,
        "options": tuple(COMPARE_OPTIONS[i] for i in order),
        "answer": letter,
        "images": tuple(_encode(rng, pixels, box) for box in boxes),
        "explanation": brief(COMPARE_OPTIONS[right], letter),
        "meta": {"kind": "comparison", "boxes": boxes, "positive_share": [round(share, 4) for share in shares]},
    }


def _tile(
    rng: np.random.Generator, positive: NDArray[np.bool_], split: str, size: int, low: float, high: float
) -> tuple[Box, float]:
    """A random tile of the split's region whose positive share is within [low, high]."""
    left, right = REGIONS[split]
    for _ in range(10_000):
        x, y = int(rng.integers(left, right - size + 1)), int(rng.integers(0, positive.shape[0] - size + 1))
        share = float(positive[y : y + size, x : x + size].mean())
        if low <= share <= high:
            return (x, y, x + size, y + size), share
    raise DataError(f"no tile of {size} pixels of split {split!r} has a positive share from {low:.2f} to {high:.2f}")


def _encode(rng: np.random.Generator, pixels: NDArray[np.uint8], box: Box) -> bytes:
    """A tile as PNG, turned and mirrored at random: tissue has no up and down."""
    tile = pixels[box[1] : box[3], box[0] : box[2]]
    tile = np.rot90(tile, int(rng.integers(4)))
    if rng.integers(2):
        tile = tile[:, ::-1]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
