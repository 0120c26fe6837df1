"""data.train and data.weights of a recipe -> the sources of the stream."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

from pathor1.data.row_groups import expand, row_groups
from pathor1.data.stream import Source
from pathor1.recipe import Samples

# The one source of data without weights.
ALL = "train"


def sources(data: Samples) -> list[Source]:
    """One source of all files together, or, with weights, one for each entry of data.train.

    Raises DataError where an entry names no file of samples.
    """
    if not data.weights:
        return [Source(name=ALL, groups=row_groups(expand(data.train)))]
    return [
        Source(name=name, groups=row_groups(expand([entry])), weight=weight)
        for name, entry, weight in zip(names(data.train), data.train, data.weights, strict=True)
    ]


def names(entries: list[str]) -> list[str]:
    """A short name for each entry, by which metrics and checkpoints know it wherever it lies.

    Example: ["sets/pathmmu", "sets/quilt/*.parquet", "more/pathmmu.parquet"] -> ["pathmmu", "quilt", "pathmmu-2"]
    """
    found: list[str] = []
    seen: Counter[str] = Counter()
    for entry in entries:
        plain = [part for part in PurePosixPath(entry).parts if not any(mark in part for mark in "*?[")]
        name = (PurePosixPath(plain[-1]).stem if plain else "") or "data"
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found
