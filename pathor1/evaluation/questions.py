"""The questions of an evaluation: read a window at a time, with pictures in order or out of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from pathor1.errors import DataError
from pathor1.samples import Sample, read

# Questions in memory at a time, with their pictures.
WINDOW = 256


def windows(files: Sequence[str], *, tasks: Sequence[str], first: int | None = None) -> Iterator[list[Sample]]:
    """The questions of all files in order, `WINDOW` at a time; of each file the `first`, or all.

    Samples of other tasks are passed over. Raises DataError for a sample that cannot be used: an evaluation on some of
    the questions could not be compared with another.
    """
    for path in files:
        questions = islice(_questions(path, tasks), first)
        while window := list(islice(questions, WINDOW)):
            yield window


def _questions(path: str, tasks: Sequence[str]) -> Iterator[Sample]:
    for sample in read(path):
        if sample.task not in tasks:
            continue
        if problem := sample.problem():
            raise DataError(f"{path}: sample {sample.id!r}: {problem}")
        yield sample


def shuffled_pictures(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The same questions, each with the pictures of another one that has as many.

    No question keeps its own. One whose number of pictures no other has is left out.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        alike[len(sample.images)].append(place)
    giver: dict[int, int] = {}
    for count, places in alike.items():
        if count == 0 or len(places) < 2:
            continue
        # Everyone in a circle gives to the next: nobody to himself.
        circle = rng.permutation(places).tolist()
        giver.update(zip(circle, [*circle[1:], circle[0]], strict=True))
    return [replace(samples[place], images=samples[giver[place]].images) for place in sorted(giver)]


def chance(sample: Sample) -> float:
    """How often guessing is right: one in as many as there are options, or one in two."""
    return 1 / len(sample.options) if sample.options else 0.5
