"""Pictures of evaluation sets among training samples: the same pixels, or nearly the same picture.

Evaluation pictures count in all eight turned and mirrored forms, as LC25000's are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pathor1 import files
from pathor1.data.near_pictures import Hashes, HashGroup, Places, array, nearest
from pathor1.data.row_groups import RowGroup, expand, row_groups
from pathor1.errors import DataError, RunError
from pathor1.ray_cluster import ray_cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A training sample with a picture of an evaluation set. bits: in which hashes differ, None = the same pixels."""

    id: str
    file: str
    evaluation: str  # that file
    evaluation_id: str
    bits: int | None


def find(patterns: Sequence[str], against: Sequence[str], *, distance: int = 4, workers: int = 2) -> list[Leak]:
    """The training samples of `patterns` whose pictures are in the samples of `against`, on Ray Data.

    distance: bits of the perceptual hash that may differ; -1 = only the same pixels count. Pictures that cannot be read
    are passed over. Raises DataError for files that are no samples, RunError where the distance is no number of bits.
    """
    if not -1 <= distance <= 16:
        raise RunError(f"--distance {distance}: a number of bits from 0 to 16, or -1 for the same pixels alone")
    train, known = expand(patterns), expand(against)
    if both := set(train) & set(known):
        raise RunError(f"{min(both)}: is both a training and an evaluation file")
    import ray

    from pathor1.data.block_source import dataset, handed_out

    def rows(reads: Sequence[Any], name: str) -> Iterator[dict[str, Any]]:
        with closing(handed_out(dataset(reads, name=name, workers=workers))) as tables:
            for table in tables:
                yield from table.to_pylist()

    with ray_cluster({}, log_to_driver=False):
        hashed = rows([HashGroup(group=group, all_forms=True) for group in row_groups(known)], "hash")
        at = ray.put(Index.of(hashed, distance))
        return [Leak(**row) for row in rows([Compare(group=group, index=at) for group in row_groups(train)], "leaks")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The pictures of evaluation sets, by their pixels and by their perceptual hashes.

    distance: bits in which hashes may differ, -1 = hashes do not count; names: file and id of each picture; by_pixels:
    the digest of its pixels -> its place in `names`; hashes: [n] of all forms of all pictures; places: [n] in `names`.
    """

    distance: int
    names: Sequence[tuple[str, str]]
    by_pixels: Mapping[bytes, int]
    hashes: Hashes
    places: Places

    @classmethod
    def of(cls, pictures: Iterable[Mapping[str, Any]], distance: int) -> Self:
        """pictures: rows of `near_pictures.HASHES`; those that could not be read are passed over."""
        names: list[tuple[str, str]] = []
        by_pixels: dict[bytes, int] = {}
        values: list[int] = []
        places: list[int] = []
        for row in pictures:
            if row["pixels"] is None:
                continue
            place = len(names)
            names.append((row["file"], row["id"]))
            by_pixels.setdefault(row["pixels"], place)
            if distance >= 0:
                values += row["hashes"]
                places += [place] * len(row["hashes"])
        return cls(
            distance=distance,
            names=names,
            by_pixels=by_pixels,
            hashes=array(values),
            places=np.asarray(places, dtype=np.int64),
        )

    def find(self, pictures: Sequence[tuple[bytes, int | None]]) -> list[tuple[tuple[str, str], int | None] | None]:
        """For each picture, as pixels and hash, which has the same pixels, or the nearest hash within the distance.

        With the bits in which that differs, None = the same pixels.
        """
        hashed = [place for place, (_, value) in enumerate(pictures) if value is not None]
        values = array([value for _, value in pictures if value is not None])
        places, bits = nearest(values, self.hashes, self.distance)
        near = {
            which: (self.names[self.places[place]], differ)
            for which, place, differ in zip(hashed, places.tolist(), bits.tolist(), strict=True)
            if place >= 0
        }
        return [
            (self.names[self.by_pixels[pixels]], None) if pixels in self.by_pixels else near.get(which)
            for which, (pixels, _) in enumerate(pictures)
        ]


LEAKS = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("evaluation", pa.string()),
        ("evaluation_id", pa.string()),
        ("bits", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """A row group of training samples -> rows of `LEAKS`. index: a reference to the `Index`."""

    group: RowGroup
    index: Any

    def __call__(self) -> Iterator[pa.Table]:
        import ray

        index: Index = ray.get(self.index)
        found: dict[str, Leak] = {}
        tables = HashGroup(group=self.group, all_forms=False)()
        rows = [row for table in tables for row in table.to_pylist() if row["pixels"] is not None]
        pictures = [(row["pixels"], row["hashes"][0] if row["hashes"] else None) for row in rows]
        for row, near in zip(rows, index.find(pictures), strict=True):
            if near is not None:
                (file, id_), bits = near
                leak = Leak(id=row["id"], file=self.group.file, evaluation=file, evaluation_id=id_, bits=bits)
                found.setdefault(row["id"], leak)
        yield pa.Table.from_pylist([asdict(leak) for leak in found.values()], schema=LEAKS)


def told(found: Sequence[Leak]) -> str:
    """How many there are, by evaluation file, and the first of them."""
    if not found:
        return "no training sample has a picture of the evaluation sets"
    lines = [f"{len(found):,} training samples have a picture of the evaluation sets:"]
    for file in sorted({leak.evaluation for leak in found}):
        of_file = [leak for leak in found if leak.evaluation == file]
        same = sum(leak.bits is None for leak in of_file)
        first = of_file[0]
        lines.append(
            f"  {file}: {same:,} by the same pixels, {len(of_file) - same:,} by nearly the same picture; the first: "
            f"{first.id} is {first.evaluation_id}"
        )
    return "\n".join(lines)


def listed(paths: Sequence[str]) -> frozenset[str]:
    """The ids in files of JSON lines, each with an `id`. Raises DataError for a file that is none."""
    ids: set[str] = set()
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
            ids.update(str(json.loads(line)["id"]) for line in text.splitlines() if line.strip())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: no file of JSON lines with an id each; `pathor1 clip leaks --out` makes one"
            ) from error
    return frozenset(ids)


def write(found: Sequence[Leak], path: Path) -> None:
    """One JSON object a line, with what `data.left_out` of a recipe needs."""
    files.write(path, "".join(json.dumps(asdict(leak)) + "\n" for leak in found))
