"""What several layouts have in common: splits, yes and no, marks of pictures, and files whose items are checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pathor1.data.formats.record import field, is_in, json_items, parquet_rows, text
from pathor1.errors import DataError

MARK = "<image>"
_LINES_OF_MARKS = re.compile(r"(?m)^(?:[ \t]*<image>[ \t]*)+(?:\r?\n|\Z)")
_MARK_IN_LINE = re.compile(r"[ \t]*<image>[ \t]*")
# A split names a folder, and comes from the source.
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def known(item: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of the fields that the item has and that JSON can hold as they are, for a sample's `meta`."""
    found = {name: item.get(name) for name in names}
    return {name: value for name, value in found.items() if _plain(value)}


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_plain, value))
    return isinstance(value, str | int | float | bool)


def list_of(item: Mapping[str, Any], name: str) -> list[Any]:
    """A field that is a list. Raises DataError where the item has none, or it is no list."""
    value = field(item, name)
    if not isinstance(value, list):
        raise DataError(f"{name} is of type {type(value).__name__}, where a list is needed")
    return value


def yes_or_no(answer: str) -> str | None:
    """ "yes" or "no" where the whole answer is that, in any case; else None."""
    answer = answer.strip().lower()
    return answer if answer in ("yes", "no") else None


def split_of(name: str) -> str:
    """The name of a split, "validation" as "val". Raises DataError where it cannot be the name of a folder."""
    if not _SPLIT.fullmatch(name):
        raise DataError(f"split is {name[:80]!r}, where one word is needed")
    return "val" if name == "validation" else name


def without_marks(text_: str) -> str:
    """The text without its "<image>" marks, and without the lines that hold nothing else."""
    return _MARK_IN_LINE.sub(" ", _LINES_OF_MARKS.sub("", text_)).strip()


def check_marks(marks: int, pictures: int) -> None:
    """Raises DataError where a text speaks of more or fewer pictures than there are."""
    if marks != pictures:
        raise DataError(f"{marks} {MARK} marks and {pictures} images, where each image needs its mark")


def first_picture(folders: Iterable[Path], names: Iterable[str]) -> Path:
    """The first of the files that exists, a name tried in each folder. Raises DataError where there is none."""
    folders, names = tuple(folders), tuple(names)
    for name in names:
        for folder in folders:
            if is_in(folder, name):
                return folder / name
    shown = " or ".join(name[:80] for name in names)
    raise DataError(f"picture {shown}: not in {' or '.join(map(str, folders))}")


def name_of(picture: Any, field_: str) -> str:
    """A picture's name. Raises DataError where the field holds anything but a text."""
    return text({field_: picture}, field_)


def json_list(path: Path, layout: str) -> Iterator[Any]:
    """The entries of a file that is one JSON list. Raises DataError where it is anything else."""
    with path.open("rb") as file:
        if not file.read(256).lstrip().startswith(b"["):
            raise DataError(f"{path}: no JSON list; {layout}")
    yield from json_items(path)


def parquet_files(source: Path) -> list[Path]:
    """The Parquet files in the folder's data/, or in the folder itself where it has none; sorted."""
    return sorted(source.glob("data/*.parquet")) or sorted(source.glob("*.parquet"))


def rows_with(path: Path, columns: Iterable[str], layout: str) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, all columns. Raises DataError where it is none, or lacks one of `columns`."""
    for place, row in enumerate(parquet_rows(path)):
        if place == 0 and (missing := [name for name in columns if name not in row]):
            raise DataError(f"{path}: no column {', '.join(missing)}; {layout}")
        yield row
