"""Cross-modal retrieval: Recall@k from pictures to texts and from texts to pictures (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from pathor1.errors import DataError
from pathor1.evaluation.intervals import Share, wilson

KS = (1, 5, 10, 20)
# Of the matrix of similarities, which for 100,000 pairs would be 40 GB, this much is in memory at a time: 64 MB.
QUERIES, CANDIDATES = 1024, 16384

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How often one of the first k is right, by k, among `n` candidates. mean: over the ks, as the paper's "Aver"."""

    at: dict[int, Share]
    mean: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Both directions, always. first: for each picture the places of the texts that fit it best, the best first."""

    image_to_text: Recall
    text_to_image: Recall
    first: Integers


def groups(keys: Sequence[Hashable]) -> Integers:
    """A number for each key, the same for equal ones. Example: ["a", "b", "a"] -> [0, 1, 0]."""
    seen: dict[Hashable, int] = {}
    return np.asarray([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def retrieval(
    images: Floats,
    texts: Floats,
    *,
    same_text: Integers,
    same_image: Integers,
    ks: Sequence[int] = KS,
    device: str = "cpu",
) -> Retrieval:
    """Recall@k of pairs: the picture at each place belongs with the text there.

    images, texts: [n, d], of length 1. same_text, same_image: [n], numbers that are equal where texts or pictures are
    (`groups`): whatever has the same text or the same picture is right too. Where there are fewer than k candidates,
    all of them are the first k. Raises DataError for features that are not finite, and where there are none.
    """
    if not len(images) == len(texts) == len(same_text) == len(same_image):
        raise ValueError(f"{len(images)} pictures, {len(texts)} texts")
    if not len(images):
        raise DataError("retrieval of nothing: there is no picture with a caption")
    for name, values in (("pictures", images), ("texts", texts)):
        if not np.isfinite(values).all():
            raise DataError(f"the features of the {name} are not finite; the model is broken")
    to_text = _first(images, texts, max(ks), device)
    to_image = _first(texts, images, max(ks), device)
    return Retrieval(
        image_to_text=_recall(to_text, same_text, same_image, ks),
        text_to_image=_recall(to_image, same_text, same_image, ks),
        first=to_text,
    )


def _first(queries: Floats, candidates: Floats, count: int, device: str) -> Integers:
    """[n, count] the places of the candidates that are most alike, the best first, or as many as there are."""
    import torch

    found: list[Integers] = []
    left = torch.from_numpy(np.ascontiguousarray(queries))
    right = torch.from_numpy(np.ascontiguousarray(candidates)).to(device)
    count = min(count, len(candidates))
    for rows in left.split(QUERIES):
        values: Any = torch.empty(len(rows), 0, device=device)
        places: Any = torch.empty(len(rows), 0, dtype=torch.int64, device=device)
        asked = rows.to(device)
        for start in range(0, len(right), CANDIDATES):
            part = right[start : start + CANDIDATES]
            best, where = (asked @ part.T).topk(min(count, len(part)), dim=1)
            values, places = torch.cat([values, best], 1), torch.cat([places, where + start], 1)
            values, order = values.topk(min(count, values.shape[1]), dim=1)
            places = places.gather(1, order)
        found.append(places.cpu().numpy())
    return np.concatenate(found)


def _recall(first: Integers, same_text: Integers, same_image: Integers, ks: Sequence[int]) -> Recall:
    right = (same_text[first] == same_text[:, None]) | (same_image[first] == same_image[:, None])
    at = {k: wilson(int(right[:, :k].any(axis=1).sum()), len(first)) for k in ks}
    return Recall(at=at, mean=fmean(share.value for share in at.values()), n=len(first))
