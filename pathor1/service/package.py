"""What a submitted job takes along: the code of this clone and its recipe, and nothing that lies beside them.

What goes is listed, not what stays: data, models, runs, `.git` and `.venv` cannot be forgotten in a list.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pathor1
from pathor1.errors import RunError

CODE = ("pathor1", "rewards", "ray_jobs")
# Bytes of one request that Ray's dashboard takes (ray_constants.DASHBOARD_CLIENT_MAX_SIZE), and with it of a package:
# below the 512 MiB that Ray's own store would take.
LARGEST = 100 * 2**20


def clone() -> Path | None:
    """The clone that pathor1 runs from; None where it is installed as a package, as it is then on the nodes."""
    root = Path(pathor1.__file__).absolute().parents[1]
    return root if (root / "pyproject.toml").is_file() else None


@contextmanager
def packed(root: Path | None, name: str, recipe: str) -> Iterator[Path]:
    """A temporary folder with the code of `root`, where there is any, and the text of a recipe as the file `name`.

    Raises RunError where it would be larger than Ray takes.
    """
    found = [] if root is None else list(_files(root))
    sizes = {path: path.stat().st_size for path in found}
    if sum(sizes.values()) + len(recipe.encode()) >= LARGEST:
        largest = max(sizes, key=lambda path: sizes[path])
        raise RunError(
            f"{root}: {', '.join(CODE)} hold {sum(sizes.values()) / 2**20:.0f} MiB and a job takes at most "
            f"{LARGEST // 2**20} MiB along; the largest file is {largest}: data and models belong elsewhere"
        )
    with tempfile.TemporaryDirectory(prefix="pathor1-job-") as text:
        folder = Path(text)
        for path in found:
            target = folder / path.relative_to(root or folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        (folder / name).write_text(recipe, encoding="utf-8")
        yield folder


def _files(root: Path) -> Iterator[Path]:
    for folder in CODE:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def origin(root: Path | None) -> dict[str, str]:
    """Who submits, and which code: what a job's description says beside its run."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    found = {"user": f"{user}@{socket.gethostname()}", "pathor1": version("pathor1")}
    commit = _git(root, "rev-parse", "--short=12", "HEAD") if root else None
    if commit:
        found["git"] = f"{commit} with changes" if _git(root, "status", "--porcelain", "--", *CODE) else commit
    return found


def _git(root: Path | None, *arguments: str) -> str | None:
    """What git says; None where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
