"""Zero-shot classification: the class whose description is most like the picture (paper, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from pathor1.clip.prompts import Prompts
from pathor1.errors import DataError
from pathor1.evaluation.intervals import Share, wilson

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """What came of classifying a set. confusion: [true class][said class] counts; by_class: how many of each are right.

    balanced: the mean over the classes of `by_class`.
    """

    classes: tuple[str, ...]
    accuracy: Share
    balanced: Share
    by_class: dict[str, Share]
    confusion: tuple[tuple[int, ...], ...]


def classifier(prompts: Prompts, encode: Callable[[Sequence[str]], Floats]) -> Floats:
    """[classes, d] of length 1: the mean of a class's sentences, each of length 1, made of length 1 again.

    encode: texts -> [n, d] of length 1. Source: Radford et al. 2021, section 3.1.4, and CONCH.
    """
    weights = []
    for name in prompts.classes:
        mean = encode(prompts.texts(name)).mean(axis=0)
        weights.append(mean / np.linalg.norm(mean))
    return np.stack(weights).astype(np.float32)


def classify(images: Floats, weights: Floats) -> Integers:
    """[n] the class of each picture. images: [n, d] and weights: [classes, d], of length 1."""
    return (images @ weights.T).argmax(axis=1).astype(np.int64)


def score(said: Integers, truth: Integers, classes: Sequence[str]) -> Classified:
    """said, truth: [n] places in `classes`. Raises DataError where a class has no picture: its share means nothing."""
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (truth, said), 1)
    of_class = confusion.sum(axis=1)
    if empty := [name for name, count in zip(classes, of_class, strict=True) if not count]:
        raise DataError(
            f"no picture of the class {', '.join(empty)}; leave it out of the prompts, or give its pictures"
        )
    right = confusion.diagonal()
    by_class = {name: wilson(int(hits), int(count)) for name, hits, count in zip(classes, right, of_class, strict=True)}
    return Classified(
        classes=tuple(classes),
        accuracy=wilson(int(right.sum()), len(truth)),
        balanced=_balanced(list(by_class.values()), len(truth)),
        by_class=by_class,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def _balanced(shares: Sequence[Share], n: int) -> Share:
    """The mean of independent shares, with an interval made of theirs (MOVER: Zou and Donner 2008, equation 1)."""
    value = fmean(share.value for share in shares)
    below = math.sqrt(sum((share.value - share.low) ** 2 for share in shares)) / len(shares)
    above = math.sqrt(sum((share.high - share.value) ** 2 for share in shares)) / len(shares)
    return Share(value=value, low=max(0.0, value - below), high=min(1.0, value + above), n=n)
