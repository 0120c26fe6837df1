"""WebDataset: *.tar with a picture and its caption for each key, as img2dataset, open_clip and `pathor1 clip shards`
write them.

KEY.jpg (or .jpeg, .png, .webp, .tif, .tiff, .bmp) and KEY.txt, or KEY.json with a `caption`, one behind the other. Of
KEY.json, id, source, subfield and license are kept where they are, and all else as meta. A key may have dots in its
folder's name and none in its own. Shards are all of the split "train".
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pathor1.data.formats.record import Built, Format, Record, record, text
from pathor1.errors import DataError
from pathor1.samples import SUBFIELDS, Sample

PICTURES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
# Of KEY.json, what has a place of its own in a sample.
OWN = ("id", "source", "subfield", "license", "caption", "key")


def records(source: Path) -> Iterator[Record]:
    """The items of all shards, by name. Raises DataError where there is no shard, or one is no tar file."""
    shards = sorted(source.glob("*.tar"))
    if not shards:
        raise DataError(f"{source}: holds no *.tar; give the folder of the shards")
    for shard in shards:
        for key, parts in _items(shard):
            yield record(f"{shard.name}, {key}", partial(_build, shard.stem, key, parts))


def _items(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key -> suffix -> content, of files with the same key that stand one behind the other."""
    key, parts = "", dict[str, bytes]()
    try:
        with tarfile.open(shard, "r|*") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if not member.isfile() or not dot or not stem:
                    continue
                whole = f"{folder}/{stem}" if folder else stem
                if parts and (whole != key or suffix.lower() in parts):
                    yield key, parts
                    parts = {}
                key = whole
                content = tar.extractfile(member)
                parts[suffix.lower()] = content.read() if content else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{shard}: not a whole tar file: {error}") from error
    if parts:
        yield key, parts


def _build(shard: str, key: str, parts: Mapping[str, bytes]) -> Built:
    pictures = [parts[suffix] for suffix in PICTURES if suffix in parts]
    if len(pictures) != 1:
        raise DataError(f"{len(pictures)} pictures, where one is needed; it has {', '.join(parts)}")
    told = _json(parts)
    subfield = told.get("subfield")
    sample = Sample(
        id=str(told.get("id") or f"{shard}/{key}"),
        source=str(told.get("source") or "webdataset"),
        task="caption",
        question="",
        answer=_caption(parts, told),
        subfield=subfield if subfield in SUBFIELDS else None,
        meta={"key": key, **{name: value for name, value in told.items() if name not in OWN}},
        license=told.get("license") if isinstance(told.get("license"), str) else None,
    )
    return sample, (pictures[0],)


def _json(parts: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        found = json.loads(parts.get("json", b"{}"))
    except ValueError as error:
        raise DataError(f"its .json is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError("its .json is no table of fields")
    return found


def _caption(parts: Mapping[str, bytes], told: Mapping[str, Any]) -> str:
    if "txt" not in parts:
        return text(told, "caption")
    try:
        return text({"txt": parts["txt"].decode("utf-8-sig")}, "txt")
    except UnicodeDecodeError as error:
        raise DataError(f"its .txt is not UTF-8 (byte {error.start})") from error


FORMAT = Format(source="the folder of *.tar", records=records)
