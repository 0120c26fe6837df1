"""One rank of a contrastive step without Ray: `python -m clip_ranks FOLDER`, under torchrun's variables.

FOLDER has `config.json` and `cases.json` (name -> passes, dtype). Of each case rank 0 writes `NAME.pt`: the loss of two
steps, and the gradients and weights behind them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAIRS = 16


def main(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        done = run(folder, **case)
        if dist.get_rank() == 0:
            torch.save(done, folder / f"{name}.pt")
    dist.destroy_process_group()


def run(folder: Path, *, passes: int, dtype: str = "float32") -> dict[str, Any]:
    """Two steps on this rank's part of `PAIRS` pairs, which hang on the seed alone."""
    import torch
    import torch.distributed as dist

    from pathor1.clip import models
    from pathor1.clip.step import Trainer
    from pathor1.contrastive import ClipModel, Contrast

    torch.manual_seed(3)
    model = models.build(models.find(ClipModel(architecture=str(folder / "tiny.json"))))
    stage = Contrast(train=["x"], steps=4, batch_size=PAIRS, passes=passes, learning_rate=1e-3, warmup_steps=0)
    trainer = Trainer(model, stage, dtype=dtype)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = slice(rank * PAIRS // ranks, (rank + 1) * PAIRS // ranks)
    losses, gradients = [], []
    for number in (1, 2):
        pixels, tokens = pairs(number)
        losses.append(trainer.step(pixels[mine], tokens[mine], number=number).loss)
        gradients.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
    return {"losses": losses, "gradients": gradients, "weights": model.state_dict()}


def pairs(number: int) -> tuple[Any, Any]:
    """The batch of a step: pictures of noise and texts of eight tokens."""
    import torch

    rng = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (PAIRS, 56, 56, 3), dtype=torch.uint8, generator=rng)
    tokens = torch.zeros(PAIRS, 24, dtype=torch.int64)
    tokens[:, :8] = torch.randint(1, 49000, (PAIRS, 8), generator=rng)
    tokens[:, 8] = 49407  # the end of a text
    return pixels, tokens


if __name__ == "__main__":
    main(Path(sys.argv[1]))
