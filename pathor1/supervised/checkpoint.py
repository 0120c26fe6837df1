"""A supervised stage's checkpoints: DeepSpeed's files, to go on from, and the model in Hugging Face's form."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from pathor1 import checkpoints, files
from pathor1.checkpoints import MODEL, Manifest
from pathor1.data.stream import StreamState
from pathor1.errors import RunError
from pathor1.supervised.parts import merged
from pathor1.supervised.starts import MARK
from pathor1.training import Lora
from pathor1.weights_only import weights_only

STATE, TAG = "deepspeed", "state"


def save(
    engine: Any,
    processor: Any,
    root: Path,
    step: int,
    *,
    stream: StreamState,
    recipe: str,
    lora: Lora | None,
    keep: int,
) -> None:
    """Writes the checkpoint of a step, on all ranks together; the first one's manifest makes it whole.

    recipe: the run's, as TOML. keep: how many checkpoints stay.
    """
    import torch.distributed as dist

    path = checkpoints.folder(root, step)
    # What does not train is in the model that the stage began with.
    engine.save_checkpoint(str(path / STATE), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    save_model(engine, processor, path / MODEL, lora=lora)
    if dist.get_rank() == 0:
        files.write(path / checkpoints.RECIPE, recipe)
        found = checkpoints.describe(path, checkpoints.contents(path), sync=True)
        checkpoints.seal(path, Manifest(step=step, stream=stream, ranks=dist.get_world_size(), files=found))
        checkpoints.prune(root, keep)
    dist.barrier()


def save_model(engine: Any, processor: Any, path: Path, *, lora: Lora | None) -> None:
    """The trained model and its processor as a Hugging Face folder, which appears whole or not at all.

    Adapters are merged into the weights they belong to. On all ranks together; the first one writes.
    """
    import torch.distributed as dist

    module, writes = engine.module, dist.get_rank() == 0
    # With ZeRO 3 a collective, for which DeepSpeed has no public name.
    partitioned = engine.zero_optimization_stage() == 3
    state = engine._zero3_consolidated_16bit_state_dict() if partitioned else module.state_dict()
    if writes:
        whole = merged({name.removeprefix("model."): tensor for name, tensor in state.items()}, lora)
        for name in module.model.all_tied_weights_keys:  # what is another weight again, such as a tied lm_head
            whole.pop(name, None)
        with files.replacing(path) as part:
            module.model.save_pretrained(part, state_dict=whole)
            processor.save_pretrained(part)
            (part / MARK).touch()
    dist.barrier()


def load(engine: Any, checkpoint: Path, universal: Path | None) -> None:
    """Takes up a checkpoint's weights, optimizer and schedule. universal: where it lies in the form for other ranks.

    Its files are read as data. Raises RunError where they do not fit the model.
    """
    folder = checkpoint / STATE if universal is None else universal
    with weights_only(*_classes()):
        try:
            loaded, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
        except (RuntimeError, KeyError, ValueError, OSError, AssertionError) as error:  # DeepSpeed has no class for it
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"{checkpoint}: not a checkpoint of this model and what trains of it ({reason})") from error
    if loaded is None:
        raise RunError(f"{checkpoint}: DeepSpeed finds nothing to go on from in it")


def make_universal(checkpoint: Path, to: Path) -> None:
    """Writes a checkpoint in DeepSpeed's universal form, a file a parameter, which any number of ranks takes up."""
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(to, ignore_errors=True)
    with weights_only(*_classes()):
        ds_to_universal.main(
            Namespace(
                input_folder=str(checkpoint / STATE / TAG),
                output_folder=str(to / TAG),
                num_extract_workers=1,  # processes of its own would not know which classes may be read
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,  # that no weight is split, or averaged
            )
        )


def _classes() -> tuple[type, ...]:
    """What DeepSpeed's files hold beside tensors and plain values."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return LossScaler, ZeroStageEnum, fragment_address
