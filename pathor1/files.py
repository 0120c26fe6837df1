"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what is written there takes the place of `path` at the end.

    On an exception the temporary file or folder is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    old = part.with_suffix(".old")
    try:
        yield part
        if part.is_dir():
            for file in part.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.is_dir():
                path.rename(old)  # removed last: it takes long, and who is killed meanwhile leaves half a folder
        else:
            _sync(part)
        part.replace(path)
        _sync(path.parent)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        raise
    finally:
        for left in (part, old):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)


def write(path: str | Path, content: str | bytes) -> None:
    """Writes a small file in one go."""
    with replacing(path) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
