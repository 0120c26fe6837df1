"""Checkpoints and the ranks that write and read them: verl's FSDP2 engine on one, two and three of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from small import Small
from torch.distributed.tensor import DTensor

from pathor1.cli import explain
from pathor1.errors import RunError

pytestmark = pytest.mark.timeout(600)


def on_ranks(ranks: int, work: Callable[..., None], *arguments: Any) -> None:
    """Runs `work(engine, *arguments)` in so many processes, with verl's engine for the small model in each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (ranks, port, work, *arguments), nprocs=ranks)


def _rank(rank: int, ranks: int, port: int, work: Callable[..., None], model: Path, *arguments: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "VERL_LOGGING_LEVEL": "WARNING"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    import verl  # noqa: F401 (loads the platform of a machine without a GPU)
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    from pathor1.rl.verl_config import MIXED_PRECISION

    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    contents = ["model", "optimizer", "extra"]
    engine = FSDPEngineWithLMHead(
        model_config=HFModelConfig(
            path=str(model),
            enable_gradient_checkpointing=False,
            use_remove_padding=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", use_torch_compile=False, mixed_precision=MIXED_PRECISION["float32"]
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, lr_warmup_steps=10, total_training_steps=20),
        checkpoint_config=CheckpointConfig(save_contents=contents, load_contents=contents),
    )
    engine.initialize()
    try:
        work(engine, *arguments)
    finally:
        torch.distributed.destroy_process_group()


def learn(engine: Any, seed: int) -> float:
    """One update on the same tokens on every rank; returns its loss."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(20, 500, (2, 12), generator=generator)
    picture = {"pixel_values": torch.randn(16, 1176, generator=generator), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    tokens[0, 3:7] = engine.module.config.image_token_id
    engine.optimizer.zero_grad()
    places = torch.arange(12).expand(4, 2, 12)
    logits = engine.module(input_ids=tokens, position_ids=places, use_cache=False, **picture).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    engine.optimizer.step()
    engine.lr_scheduler.step()
    return float(loss.detach())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, which what comes later leaves alone."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def everything(engine: Any) -> dict[str, Any]:
    """Whole weights and moments, the schedule and the state of torch's random numbers."""
    weights = {name: whole(tensor) for name, tensor in engine.module.state_dict().items()}
    state = engine.optimizer.state_dict()
    moments = {
        f"{number}/{name}": whole(value) for number, values in state["state"].items() for name, value in values.items()
    }
    return {
        "weights": weights,
        "moments": moments,
        "rates": [group["lr"] for group in state["param_groups"]],
        "schedule": engine.lr_scheduler.state_dict(),
    }


def train_and_save(engine: Any, folder: Path) -> None:
    """Two updates, a checkpoint, and a third update."""
    learn(engine, 1)
    learn(engine, 2)
    torch.manual_seed(100 + engine.rank)
    engine.save_checkpoint(str(folder / "2"))
    saved = everything(engine)
    loss = learn(engine, 3)
    after = everything(engine)
    if engine.rank == 0:
        torch.save({"saved": saved, "loss": loss, "after": after}, folder / "expected.pt")


def load_and_go_on(engine: Any, folder: Path, ranks: int) -> None:
    """Loads what so many ranks have saved and saves it again, compares it, and makes the third update."""
    from pathor1.rl import reshard

    expected = torch.load(folder / "expected.pt", weights_only=True)
    own = torch.get_rng_state()
    reshard.load(engine, folder / f"{ranks}", ranks)
    seeded = torch.Generator().manual_seed(100 + engine.rank).get_state()
    assert torch.equal(torch.get_rng_state(), seeded if engine.rank < ranks else own)
    engine.save_checkpoint(str(folder / f"{torch.distributed.get_world_size()}"))
    found, saved = everything(engine), expected["saved"]
    for kind in ("weights", "moments"):
        assert found[kind].keys() == saved[kind].keys()
        assert all(torch.equal(found[kind][name], saved[kind][name]) for name in saved[kind])
    assert sum(name.endswith("exp_avg") for name in found["moments"]) == len(found["weights"])
    assert all(tensor.abs().sum() > 0 for name, tensor in found["moments"].items() if name.endswith("exp_avg_sq"))
    assert (found["rates"], found["schedule"]) == (saved["rates"], saved["schedule"])
    assert found["schedule"]["last_epoch"] == 2
    # And goes on as it would have.
    assert learn(engine, 3) == pytest.approx(expected["loss"], abs=1e-6)
    found = everything(engine)
    for name, tensor in expected["after"]["weights"].items():
        assert (tensor - saved["weights"][name]).abs().max() > 1e-5, f"{name} has moved"
        torch.testing.assert_close(found["weights"][name], tensor, rtol=0, atol=1e-6)


def test_another_number_of_ranks_goes_on_with_the_same_weights_and_moments(small: Small, tmp_path: Path) -> None:
    """Two ranks train, three go on, one goes on: parts of a tensor are no halves, and some ranks have none."""
    on_ranks(2, train_and_save, small.model, tmp_path)
    on_ranks(3, load_and_go_on, small.model, tmp_path, 2)
    on_ranks(1, load_and_go_on, small.model, tmp_path, 3)


def test_each_rank_reads_its_files_and_says_which_is_damaged(tmp_path: Path) -> None:
    import ray

    from pathor1 import checkpoints
    from pathor1.rl import on_ranks

    @ray.remote(num_cpus=0)
    class Rank:
        pass

    for rank in range(2):
        (tmp_path / f"optim_world_size_2_rank_{rank}.pt").write_bytes(b"moments of %d" % rank)
    names = checkpoints.contents(tmp_path)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        workers = [Rank.remote() for _ in range(2)]
        found = on_ranks.call(workers, on_ranks.describe, [(tmp_path, share) for share in checkpoints.shares(names, 2)])
        assert [list(each) for each in found] == [[names[0]], [names[1]]]
        assert found[0] | found[1] == checkpoints.describe(tmp_path, names)
        (tmp_path / names[1]).write_bytes(b"moments of 2")
        with pytest.raises(RunError) as caught:
            on_ranks.call(workers, on_ranks.verify, [(tmp_path, each) for each in found])
    finally:
        ray.shutdown()
    line = explain(caught.value)
    assert line is not None
    assert line.startswith(f"{tmp_path / names[1]}: does not have the content that it was written with; remove ")
