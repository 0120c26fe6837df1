"""A checkpoint's model as a Hugging Face folder that transformers and vLLM load, whole or not at all.

verl writes the weights in float32, as they are trained, and a config that says bfloat16 and how this run computed
attention. What is exported has the type that the run served its answers with, says so, and says nothing of the run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pathor1 import checkpoints, files
from pathor1.errors import RunError

SOURCE = "huggingface/"


def choose(root: Path, *, step: int | None = None, best: bool = False) -> Path:
    """The checkpoint of a step, the best one, or the newest. Raises RunError where there is none."""
    scored = checkpoints.scores(root)
    if not scored:
        raise RunError(f"{root}: holds no complete checkpoint; a run writes one every rl.save_every steps")
    there = f"; there are steps {', '.join(map(str, sorted(scored)))}"
    if best:
        step = checkpoints.best(scored)
        if step is None:
            raise RunError(f"{root}: no checkpoint has a score{there}")
    elif step is not None and step not in scored:
        raise RunError(f"{root}: no complete checkpoint of step {step}{there}")
    return checkpoints.folder(root, max(scored) if step is None else step)


def export(checkpoint: Path, to: Path, *, dtype: str) -> None:
    """Writes the model of a checkpoint to a new folder. dtype: "bfloat16" or "float32", of its weights.

    Raises RunError where the folder is there already, and for a checkpoint that is damaged.
    """
    if to.exists():
        raise RunError(f"{to}: is there already; name a folder that is not, or remove it")
    manifest = checkpoints.read(checkpoint)
    wanted = {name: file for name, file in manifest.files.items() if name.startswith(SOURCE)}
    checkpoints.verify(checkpoint, wanted)
    size = 0
    with files.replacing(to) as part:
        for name in wanted:
            source, target = checkpoint / name, part / name.removeprefix(SOURCE)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".safetensors":
                size += _write_weights(source, target, dtype)
            else:
                shutil.copyfile(source, target)
        if (part / "config.json").exists():  # open_clip's says nothing of types
            _correct_config(part / "config.json", dtype)
        _correct_index(part / "model.safetensors.index.json", size)


def _write_weights(source: Path, target: Path, dtype: str) -> int:
    """One file of weights in the wanted type, and their bytes; what is not floating point stays as it is."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
        metadata = stored.metadata()
    kind = getattr(torch, dtype)
    tensors = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(tensors, target, metadata)
    target.chmod(0o644)  # safetensors lets its owner alone read it
    return sum(tensor.nbytes for tensor in tensors.values())


def _correct_config(path: Path, dtype: str) -> None:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("attn_implementation", None)
        if "dtype" in part or part is config:
            part["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _correct_index(path: Path, size: int) -> None:
    """The index of several files of weights states their size in bytes; there is none for a single file."""
    if path.exists():
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        index["metadata"]["total_size"] = size
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
