"""Pictures and captions as WebDataset shards, which open_clip's own training and other programs read.

A shard is NNNNN.tar, a pair in it KEY.jpg (.png, .webp), KEY.txt, KEY.json. `sizes.json` says how many pairs each has,
in open_clip's form; it is written last. Until then `.unfinished/` has what the shards are made of, and what is known of
each that is whole: the same command goes on with those that are missing. `pathor1 data import webdataset` reads shards.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from pathor1 import files
from pathor1.clip.embed import one_picture
from pathor1.contrastive import ANY_SIZE
from pathor1.data.images import decode
from pathor1.data.row_groups import RowGroup, expand, fingerprint, row_groups
from pathor1.errors import DataError, RunError
from pathor1.ray_cluster import ray_cluster
from pathor1.samples import Sample, from_row, open_parquet

MANIFEST, LEFT_OUT = "sizes.json", "left_out.jsonl"
UNFINISHED, PLAN = ".unfinished", "plan.json"
# What open_clip reads; others become PNG, which loses nothing.
KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
ORIENTATION = 0x0112  # in EXIF; 1 = upright
COUNTS = pa.schema([("shard", pa.string()), ("pairs", pa.int64()), ("left_out", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """shards: name -> pairs. Samples of other tasks are passed over, and are not among those left out."""

    shards: dict[str, int]
    left_out: int
    first_left_out: str | None

    @property
    def pairs(self) -> int:
        """Of all shards."""
        return sum(self.shards.values())


def write(
    patterns: Sequence[str],
    out: Path,
    *,
    pairs: int = 5000,
    first: int = 0,
    workers: int = 2,
    passed_over: frozenset[str] = frozenset(),
) -> Written:
    """Writes the captions of these files to `out`, on Ray Data.

    pairs: rows of the files that a shard is made of; first: its number, so that several sets may share a numbering;
    passed_over: ids of samples that are in none, as those that `pathor1.clip.leaks` has found.
    A picture that cannot be read is left out, and `left_out.jsonl` says why. Shards that an interrupted call has
    written stay. Raises DataError for files that are no samples and where no pair can be used, RunError where `out`
    holds something else.
    """
    if pairs < 1 or first < 0 or workers < 1:
        raise RunError("--pairs and --workers are at least 1, and --first at least 0")
    groups = row_groups(expand(patterns))
    out = out.absolute()
    _go_on(out, _made_of(groups, pairs, first, passed_over))
    shards = [
        WriteShard(path=out / f"{first + place:05d}.tar", parts=parts, passed_over=passed_over)
        for place, parts in enumerate(_plan(groups, pairs))
    ]
    from pathor1.data.block_source import dataset, handed_out

    counts: dict[str, int] = {}
    told: list[str] = []
    with ray_cluster({}, log_to_driver=False):
        made = dataset(shards, name="shards", workers=workers)
        with closing(handed_out(made)) as tables:
            for row in (row for table in tables for row in table.to_pylist()):
                if row["pairs"]:
                    counts[row["shard"]] = row["pairs"]
                told += json.loads(row["left_out"])
    if not counts:
        raise DataError(f"{', '.join(patterns)}: no pair can be used; {told[0] if told else 'there is no caption'}")
    files.write(out / LEFT_OUT, "".join(f"{line}\n" for line in told))
    files.write(out / MANIFEST, json.dumps(dict(sorted(counts.items())), indent=1) + "\n")
    shutil.rmtree(out / UNFINISHED)  # last
    return Written(shards=counts, left_out=len(told), first_left_out=told[0] if told else None)


def _made_of(groups: Sequence[RowGroup], pairs: int, first: int, passed_over: frozenset[str]) -> str:
    """What the shards of a folder hang on, as JSON."""
    ids = hashlib.sha256("\n".join(sorted(passed_over)).encode()).hexdigest()
    told = {"data": asdict(fingerprint(groups)), "pairs": pairs, "first": first, "passed_over": ids}
    return json.dumps(told, indent=1) + "\n"


def _go_on(out: Path, made_of: str) -> None:
    """Makes the folder ready for its shards. Raises RunError where it holds something, but what of these is whole."""
    plan = out / UNFINISHED / PLAN
    if not plan.is_file():
        if out.exists() and any(out.iterdir()):
            raise RunError(f"{out}: is not empty; give another folder by --out")
        files.write(plan, made_of)
    elif plan.read_text(encoding="utf-8") != made_of:
        raise RunError(
            f"{out}: has unfinished shards of other files, or with another --pairs, --first or --left-out; set them as "
            "they were, or give another folder by --out"
        )
    for left in out.glob(".*.part"):  # of a process that was killed
        left.unlink()


# Rows of a row group: the group, the first row, and the row behind the last.
Part = tuple[RowGroup, int, int]


def _plan(groups: Sequence[RowGroup], rows: int) -> Iterator[list[Part]]:
    """Consecutive parts of row groups that have so many rows together; the last has what is left."""
    parts: list[Part] = []
    room = rows
    for group in groups:
        start = 0
        while start < group.rows:
            end = min(group.rows, start + room)
            parts.append((group, start, end))
            room -= end - start
            start = end
            if not room:
                yield parts
                parts, room = [], rows
    if parts:
        yield parts


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteShard:
    """Writes one shard, where it is not there: the function that one of Ray Data's workers runs.

    Gives one row of `COUNTS`, which is kept until all shards are whole.
    """

    path: Path
    parts: list[Part]
    passed_over: frozenset[str] = frozenset()

    def __call__(self) -> Iterator[pa.Table]:
        told = self.path.parent / UNFINISHED / f"{self.path.stem}.json"
        if not told.is_file():
            files.write(told, json.dumps(self._write()))
        yield pa.Table.from_pylist([json.loads(told.read_text(encoding="utf-8"))], schema=COUNTS)

    def _write(self) -> dict[str, Any]:
        left_out: list[str] = []
        pairs = 0
        with files.replacing(self.path) as part, tarfile.open(part, "w") as tar:
            for sample in self._captions():
                try:
                    suffix, data = encoded(one_picture(sample))
                except DataError as error:
                    left_out.append(json.dumps({"id": sample.id, "why": str(error)}, ensure_ascii=False))
                    continue
                _add(tar, f"{self.path.stem}{pairs:05d}", suffix, data, sample)
                pairs += 1
        if not pairs:
            self.path.unlink()
        return {"shard": self.path.name, "pairs": pairs, "left_out": json.dumps(left_out)}

    def _captions(self) -> Iterator[Sample]:
        for group, start, end in self.parts:
            table = open_parquet(group.file).read_row_group(group.index)
            for place in range(start, end):  # a picture at a time: a group may be large
                row = table.slice(place, 1).to_pylist()[0]
                if row["task"] == "caption" and row["id"] not in self.passed_over:
                    yield from_row(row)


def encoded(data: bytes) -> tuple[str, bytes]:
    """The suffix and the bytes of a picture as open_clip reads it: as it is, or as PNG.

    As PNG where it is TIFF, BMP or another format that open_clip passes over, and where EXIF says that it is turned, at
    which open_clip does not look. Raises DataError where it cannot be read.
    """
    picture = decode(data, min_pixels=1, max_pixels=ANY_SIZE)
    with Image.open(io.BytesIO(data)) as opened:
        suffix = KEPT.get(opened.format or "")
        turned = opened.getexif().get(ORIENTATION, 1) != 1
        if suffix is not None and not turned and opened.mode in ("RGB", "L", "P"):
            return suffix, data
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return "png", buffer.getvalue()


def _add(tar: tarfile.TarFile, key: str, suffix: str, data: bytes, sample: Sample) -> None:
    told = {
        "key": key,
        "id": sample.id,
        "source": sample.source,
        "caption": sample.answer,
        "subfield": sample.subfield,
        "license": sample.license,
        **(sample.meta or {}),
    }
    contents = {
        suffix: data,
        "txt": sample.answer.encode(),
        "json": json.dumps({name: value for name, value in told.items() if value is not None}).encode(),
    }
    for name, content in contents.items():
        member = tarfile.TarInfo(f"{key}.{name}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
