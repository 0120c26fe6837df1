"""A run's checkpoints: `checkpoints/step-000010/`, complete when, and only when, its manifest is there.

A checkpoint holds the actor (weights, optimizer, random state, one file a rank), the weights again in Hugging Face
safetensors form under `huggingface/`, and the place in the stream of samples. The manifest is written last.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pathor1 import files
from pathor1.data.row_groups import Fingerprint
from pathor1.data.stream import Cursor, SourceState, StreamState
from pathor1.errors import RunError

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint holds. `ranks`: how many training processes wrote it, and have to read it."""

    step: int
    stream: StreamState
    ranks: int


def folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:06d}"


def seal(path: Path, manifest: Manifest) -> None:
    """Makes a folder that holds everything a checkpoint: writes its manifest."""
    files.write(path / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")


def read(path: Path) -> Manifest:
    """The manifest of a checkpoint. Raises RunError where there is none, or one that cannot be read."""
    try:
        values = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return Manifest(step=values["step"], stream=_stream(values["stream"]), ranks=values["ranks"])
    except FileNotFoundError:
        raise RunError(f"{path}: not a complete checkpoint, it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path / MANIFEST}: cannot be read ({error}); remove the folder to resume before it") from error


def _stream(values: dict[str, Any]) -> StreamState:
    sources = tuple(
        SourceState(**{**source, "cursor": Cursor(**source["cursor"]), "data": Fingerprint(**source["data"])})
        for source in values["sources"]
    )
    return StreamState(seed=values["seed"], sources=sources)


def complete(root: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    found = [path.parent for path in root.glob(f"step-*/{MANIFEST}")]
    return sorted(found, key=lambda path: (len(path.name), path.name))  # names grow longer from step 1,000,000 on


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = complete(root)
    return found[-1] if found else None


def remove_incomplete(root: Path) -> None:
    """Removes what a run that was stopped while saving has left behind."""
    for path in root.glob("step-*"):
        if not (path / MANIFEST).exists():
            shutil.rmtree(path)


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints. The manifest goes first: a half-removed one is not one."""
    for path in complete(root)[:-keep]:
        (path / MANIFEST).unlink()
        shutil.rmtree(path)
