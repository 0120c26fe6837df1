"""verl's checkpoints, written and read by its own manager through our engine: as data, and never as code."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    """Our engine around a small FSDP2 model, its optimizer and schedule, with verl's own checkpoint manager."""
    import torch
    from torch.distributed.fsdp import fully_shard
    from transformers import BertConfig, BertModel, BertTokenizer
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    from pathor1.rl.pictures import PicturesOnceEngine

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        model = BertModel(BertConfig(vocab_size=16, **sizes))
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
        (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n")
        built = object.__new__(PicturesOnceEngine)  # what verl builds around a whole worker
        built.module, built.optimizer, built.lr_scheduler = model, optimizer, schedule
        built._is_offload_param = built._is_offload_optimizer = False
        built.checkpoint_manager = FSDPCheckpointManager(
            model, optimizer, schedule, processing_class=BertTokenizer(str(tmp_path / "vocab.txt"))
        )
        yield built
    finally:
        torch.distributed.destroy_process_group()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_comes_back_whole(engine: Any, tmp_path: Path) -> None:
    import torch

    engine.checkpoint_manager.save_checkpoint(str(tmp_path / "saved"), global_step=1)
    weights = {name: value.full_tensor().clone() for name, value in engine.module.state_dict().items()}
    drawn = (torch.rand(3), np.random.rand(3), random.random())  # noqa: NPY002 (the state that verl keeps is this one)
    with torch.no_grad():
        for parameter in engine.module.parameters():
            parameter.zero_()
    engine.optimizer.zero_grad()
    engine.lr_scheduler.step()
    engine.load_checkpoint(str(tmp_path / "saved"))
    for name, value in engine.module.state_dict().items():
        assert torch.equal(value.full_tensor(), weights[name]), name
    assert engine.lr_scheduler.get_last_lr() == [pytest.approx(0.05)]
    assert {int(state["step"]) for state in engine.optimizer.state.values()} == {1}
    assert torch.equal(torch.rand(3), drawn[0])
    assert np.array_equal(np.random.rand(3), drawn[1])  # noqa: NPY002
    assert random.random() == drawn[2]
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ, "only while it is read"


def test_a_checkpoint_cannot_run_code(engine: Any, tmp_path: Path) -> None:
    import torch

    engine.checkpoint_manager.save_checkpoint(str(tmp_path / "saved"), global_step=1)
    (file,) = (tmp_path / "saved").glob("extra_state_*.pt")
    whole = torch.load(file, weights_only=False)
    torch.save({**whole, "more": Touch(tmp_path / "harm")}, file)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        engine.load_checkpoint(str(tmp_path / "saved"))
    assert not (tmp_path / "harm").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "harm").exists(), "which it would have done"
