"""Pictures of evaluation sets among training samples: the same pixels, or nearly the same picture.

A perceptual hash is 64 bits of which horizontal neighbours of a picture of 9 x 8 pixels is brighter (dHash): another
size, another compression or a little of another colour changes few of them. Evaluation pictures count in all eight
turned and mirrored forms, as LC25000's are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pathor1 import files, places
from pathor1.contrastive import ANY_SIZE
from pathor1.data.images import decode
from pathor1.data.row_groups import RowGroup, expand, row_groups
from pathor1.errors import DataError, RunError
from pathor1.ray_cluster import ray_cluster

# A picture of one colour, or nearly, has a hash that says nothing.
LEAST_CONTRAST = 4.0


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
    """The pictures of evaluation sets, by their pixels and by their perceptual hashes, which are all looked through.

    A million of them are looked through in 2 ms, less than it takes to decode the picture that is looked for. Workers
    share the arrays, which Ray hands them as they are.
    """

    distance: int
    names: Sequence[tuple[str, str]]  # file and id of each picture
    by_pixels: Mapping[bytes, int]  # hash of its pixels -> its place in names
    hashes: npt.NDArray[np.uint64]  # [n] of all forms of all pictures
    places: npt.NDArray[np.uint32]  # [n] in names

    @classmethod
    def of(cls, pictures: Iterable[Mapping[str, Any]], distance: int) -> Self:
        """pictures: rows of `HASHES`."""
        names: list[tuple[str, str]] = []
        by_pixels: dict[bytes, int] = {}
        values: list[int] = []
        places: list[int] = []
        for place, row in enumerate(pictures):
            names.append((row["file"], row["id"]))
            by_pixels.setdefault(row["pixels"], place)
            values += row["hashes"]
            places += [place] * len(row["hashes"])
        return cls(
            distance=distance,
            names=names,
            by_pixels=by_pixels,
            hashes=np.asarray(values, dtype=np.uint64),
            places=np.asarray(places, dtype=np.uint32),
        )

    def nearest(self, pixels: bytes, value: int | None) -> tuple[tuple[str, str], int | None] | None:
        """What has the same pixels, or the nearest hash within the distance, with the bits in which it differs."""
        if pixels in self.by_pixels:
            return self.names[self.by_pixels[pixels]], None
        if value is None or self.distance < 0 or not len(self.hashes):
            return None
        bits = np.bitwise_count(self.hashes ^ np.uint64(value))
        first = int(bits.argmin())
        return (self.names[self.places[first]], int(bits[first])) if bits[first] <= self.distance else None


HASHES = pa.schema(
    [("file", pa.string()), ("id", pa.string()), ("pixels", pa.binary()), ("hashes", pa.list_(pa.uint64()))]
)
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
class HashGroup:
    """A row group -> rows of `HASHES`, one a picture: the function that one of Ray Data's workers runs."""

    group: RowGroup
    all_forms: bool

    def __call__(self) -> Iterator[pa.Table]:
        for batch in places.batches(self.group.file, group=self.group.index, size=32, columns=("id", "images")):
            rows = [row for each in batch.to_pylist() for row in self._rows(each)]
            yield pa.Table.from_pylist(rows, schema=HASHES)

    def _rows(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for data in row["images"]:
            try:
                picture = decode(data, min_pixels=1, max_pixels=ANY_SIZE)
            except DataError:
                continue
            pixels = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()[:16]
            forms = hashes(picture)
            chosen = sorted(set(forms)) if self.all_forms else forms[:1]
            yield {"file": self.group.file, "id": row["id"], "pixels": pixels, "hashes": chosen}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """A row group of training samples -> rows of `LEAKS`. index: a reference to the `Index`."""

    group: RowGroup
    index: Any

    def __call__(self) -> Iterator[pa.Table]:
        import ray

        index: Index = ray.get(self.index)
        found: dict[str, Leak] = {}
        for table in HashGroup(group=self.group, all_forms=False)():
            for row in table.to_pylist():
                near = index.nearest(row["pixels"], row["hashes"][0] if row["hashes"] else None)
                if near is not None:
                    (file, id_), bits = near
                    leak = Leak(id=row["id"], file=self.group.file, evaluation=file, evaluation_id=id_, bits=bits)
                    found.setdefault(row["id"], leak)
        yield pa.Table.from_pylist([asdict(leak) for leak in found.values()], schema=LEAKS)


def hashes(picture: Image.Image) -> list[int]:
    """The perceptual hash of a picture as it is, and of its seven other forms; none where it has hardly a contrast."""
    grey = picture.convert("L")
    if float(np.asarray(grey, dtype=np.float32).std()) < LEAST_CONTRAST:
        return []
    # Nine by nine, of which each form drops a row: turning then loses nothing.
    small = np.asarray(grey.resize((9, 9), Image.Resampling.BOX), dtype=np.int16)
    return [_hash(np.rot90(form, turns)) for form in (small, small[:, ::-1]) for turns in range(4)]


def _hash(small: npt.NDArray[np.int16]) -> int:
    bits = (small[:8, 1:] > small[:8, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


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
