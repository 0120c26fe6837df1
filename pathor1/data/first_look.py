"""A look at the first samples of each file, before a cluster is started: what is wrong throughout shows there.

A bad sample further on does not end a run: the stream leaves it out, counts it and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from pathor1.data.images import decode
from pathor1.errors import DataError
from pathor1.samples import COLUMNS, read

TEXTS = 1000
PICTURES = 16
# Each holds a row group, of which other programs may make a file's only one.
FILES_AT_ONCE = 4


def first_look(files: Sequence[str | Path], *, tasks: Sequence[str], min_pixels: int, max_pixels: int) -> None:
    """Checks the first `TEXTS` samples of each file, and decodes the pictures of the first `PICTURES`.

    Samples of other tasks are passed over. Raises DataError with file, row (from 1) and id of the first sample that
    cannot be used.
    """

    def look(path: str | Path) -> None:
        texts = read(path, columns=[name for name in COLUMNS if name != "images"])
        for row, sample in enumerate(islice(texts, TEXTS), start=1):
            problem = sample.problem() if sample.task in tasks else None
            if problem:
                raise DataError(f"{path}, row {row}, sample {sample.id!r}: {problem}")
        for row, sample in enumerate(islice(read(path), PICTURES), start=1):
            try:
                for picture in sample.images if sample.task in tasks else ():
                    decode(picture, min_pixels=min_pixels, max_pixels=max_pixels)
            except DataError as error:
                raise DataError(f"{path}, row {row}, sample {sample.id!r}: {error}") from error

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for _ in pool.map(look, files):  # the first file with a bad sample is the one that is named
            pass
