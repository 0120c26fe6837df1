"""Sets in which a picture is of one class: a question with the classes as options. Files of a set, in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The question that all pictures of a set are asked.

    options: the set's name of each class -> its text, in the order shown. subfield: as in `Sample`.
    """

    source: str
    question: str
    options: Mapping[str, str]
    subfield: str
    license: str | None = None

    def sample(self, id_: str, name: str, *, split: str, meta: Mapping[str, Any]) -> Sample:
        """The question about a picture of the class `name`, which `meta` then has too."""
        return Sample(
            id=id_,
            source=self.source,
            task="mcq",
            question=self.question,
            options=tuple(self.options.values()),
            answer=LETTERS[list(self.options).index(name)],
            subfield=self.subfield,
            split=split,
            meta={"class": name, **meta},
            license=self.license,
        )


def pictures_in(folder: Path, *suffixes: str) -> list[Path]:
    """The folder's files with one of these suffixes, in small or capital letters, by name; hidden ones are not taken.

    Raises DataError where there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the whole set, unpacked")
    # macOS leaves "._NAME.png" beside NAME.png.
    found = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: holds no {' or '.join(suffixes)} files; give the whole set, unpacked")
    return sorted(found)
