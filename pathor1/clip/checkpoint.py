"""Checkpoints of contrastive training: the model as open_clip loads it, and the optimizer's state."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from pathor1 import checkpoints, files
from pathor1.checkpoints import MODEL, Manifest
from pathor1.clip import models
from pathor1.data.stream import StreamState
from pathor1.errors import RunError

OPTIMIZER = "optimizer.pt"


def save(
    model: Any,
    config: dict[str, Any],
    tokenizer: Any,
    optimizer: Any,
    root: Path,
    step: int,
    *,
    stream: StreamState,
    ranks: int,
    recipe: str,
    keep: int,
    spare: tuple[int, ...],
) -> None:
    """Writes the checkpoint of a step, on one rank; all have the same. Its manifest makes it whole.

    config: open_clip's `model_cfg`; recipe: the run's, as TOML; keep: how many checkpoints stay; spare: steps whose
    checkpoints stay too.
    """
    import torch

    path = checkpoints.folder(root, step)
    models.save(model, config, tokenizer, path / MODEL)
    torch.save(optimizer.state_dict(), path / OPTIMIZER)
    files.write(path / checkpoints.RECIPE, recipe)
    found = checkpoints.describe(path, checkpoints.contents(path), sync=True)
    checkpoints.seal(path, Manifest(step=step, stream=stream, ranks=ranks, files=found))
    checkpoints.prune(root, keep, spare=spare)


def load_optimizer(optimizer: Any, path: Path) -> None:
    """Takes up the optimizer's state of a checkpoint, which is read as data. Raises RunError where it does not fit."""
    import torch

    try:
        state = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{path}: not a checkpoint of this model ({reason})") from error
