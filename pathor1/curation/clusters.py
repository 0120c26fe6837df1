"""Three clusters in each subfield, and the names that a reviewer gives them (Patho-R1, section 3.3).

K-means finds clusters and not levels: that one is easy and another hard was seen by the authors when they looked. So
the names are data: a TOML file, which says for which clusters it was written.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pathor1.curation.reasoning_prompts import LEVELS
from pathor1.errors import DataError, RecipeError

CLUSTERS = len(LEVELS)
# Starts of k-means, of which the best is taken.
STARTS = 10
# Rows whose distances are taken at once.
_BLOCK = 1 << 16

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustered:
    """labels: the cluster of each item, 0 to 2, in the order of the ids. distances: to the centre of it."""

    labels: npt.NDArray[np.int64]
    distances: Floats


def cluster(ids: Sequence[str], embeddings: npt.NDArray[np.floating], *, seed: int) -> Clustered:
    """The items of one subfield in three clusters, the largest first; of equal ones that with the smallest id.

    embeddings: [items, dimensions]. The same whatever the order of the items: k-means sees them in that of their ids,
    in double precision and on one thread, as sums in another order can move an item between clusters. Raises DataError
    for fewer than three different embeddings.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    order = np.argsort(np.asarray(ids))
    points = np.asarray(embeddings)[order].astype(np.float64)
    if not _has_different(points, CLUSTERS):
        raise DataError(f"{len(points)} items with fewer than {CLUSTERS} different embeddings cannot make clusters")
    with threadpool_limits(limits=1):
        found = KMeans(CLUSTERS, n_init=STARTS, random_state=seed, copy_x=False).fit(points)  # of a library 6 GB
    sizes, firsts = np.bincount(found.labels_), [int(np.argmax(found.labels_ == one)) for one in range(CLUSTERS)]
    ranks = np.empty(CLUSTERS, dtype=np.int64)
    ranks[sorted(range(CLUSTERS), key=lambda one: (-sizes[one], firsts[one]))] = np.arange(CLUSTERS)
    labels, distances = np.empty(len(points), dtype=np.int64), np.empty(len(points))
    labels[order] = ranks[found.labels_]
    for start in range(0, len(points), _BLOCK):
        some = slice(start, start + _BLOCK)
        apart = points[some] - found.cluster_centers_[found.labels_[some]]
        distances[order[some]] = np.linalg.norm(apart, axis=1)
    return Clustered(labels=labels, distances=distances)


def _has_different(points: Floats, count: int) -> bool:
    """Whether there are so many different rows; not all of them are looked at."""
    seen: set[bytes] = set()
    for point in points:
        seen.add(point.tobytes())
        if len(seen) == count:
            return True
    return False


def digest(of: Mapping[str, int]) -> str:
    """Of the clusters, as item's id -> cluster: names are for these and no others."""
    told = "\n".join(f"{id_} {one}" for id_, one in sorted(of.items()))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def blank(of: str, examples: Mapping[tuple[str, int], Sequence[str]]) -> str:
    """A file of names to be filled in. examples: (subfield, cluster) -> captions, which stand beside as comments."""
    lines = [
        f"# Look at the review page, then name each cluster: {', '.join(LEVELS)}. Two may have the same name.",
        f'clusters = "{of}"  # the clusters that the names are for',
    ]
    for subfield in sorted({subfield for subfield, _ in examples}):
        lines += ["", f"[{subfield}]"]
        for (other, one), captions in sorted(examples.items()):
            if other == subfield:
                lines += [f"# {' '.join(caption.split())[:100]}" for caption in captions]
                lines.append(f'{one} = ""')
    return "\n".join(lines) + "\n"


def read_names(path: Path, of: str, subfields: Sequence[str]) -> dict[tuple[str, int], str]:
    """(subfield, cluster) -> level. Raises RecipeError where a name is missing, is none, or is for other clusters."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); it has the names of the clusters") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error
    if found.get("clusters") != of:
        raise RecipeError(f"{path}: its names are for other clusters, {found.get('clusters')!r} and not {of!r}")
    names: dict[tuple[str, int], str] = {}
    for subfield in subfields:
        table = found.get(subfield)
        for one in range(CLUSTERS):
            name = table.get(str(one)) if isinstance(table, dict) else None
            if name not in LEVELS:
                raise RecipeError(f"{path}: [{subfield}] {one} is {name!r}, and not one of {', '.join(LEVELS)}")
            names[subfield, one] = name
    return names
