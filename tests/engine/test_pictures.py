"""A group's pictures lie in the queue once, whatever the number of its rollouts, and no longer than the group."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import Small

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def queue(small: Small) -> Iterator[Any]:
    """verl's real queue, as a run has it."""
    import ray
    import transfer_queue as tq

    from pathor1.recipe import load
    from pathor1.rl.run import _spare_cpus
    from pathor1.rl.verl_config import build

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    _spare_cpus()
    tq.init(build(load(small.recipe), accelerator="cpu").transfer_queue)
    yield tq
    tq.close()
    ray.shutdown()


def vision(seed: int, patches: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.rand((patches, 1176), generator=generator),
        "image_grid_thw": torch.tensor([[1, patches // 4, 4]]),
    }


def test_rollouts_share_what_is_stored_once(queue: Any) -> None:
    from pathor1.rl import pictures

    sets = {"0-1": vision(1, 16), "0-2": vision(2, 64)}
    for group, made in sets.items():
        assert asyncio.run(pictures.store(group, made)) == {"group": group}
    assert set(queue.kv_list(pictures.PARTITION)[pictures.PARTITION]) == set(sets)
    found = pictures.fetch(["0-2", "0-1", "0-2", "0-2"])
    assert list(found) == ["0-2", "0-1"]
    for group, made in sets.items():
        for name, tensor in made.items():
            assert torch.equal(found[group][name], tensor)


def test_the_pictures_of_groups_that_are_gone_go(queue: Any) -> None:
    from pathor1.rl import pictures

    for group in ("1-1", "1-2", "1-3"):
        asyncio.run(pictures.store(group, vision(3, 16)))
    pictures.clear_all_but(["1-2", "9-9"])
    assert set(queue.kv_list(pictures.PARTITION)[pictures.PARTITION]) == {"1-2"}
    pictures.clear_all_but([])
    assert not queue.kv_list(pictures.PARTITION).get(pictures.PARTITION)


def test_a_group_without_pictures_stores_nothing(queue: Any) -> None:
    from pathor1.rl import pictures

    assert asyncio.run(pictures.store("2-1", {})) == {}
    assert pictures.fetch([]) == {}


def test_a_rollout_carries_the_groups_name_and_no_pixel() -> None:
    from pathor1.rl.agent import Prompt, Rollout, _fields
    from pathor1.rl.scoring import RolloutScore
    from pathor1.samples import Sample

    picture = Image.fromarray(np.zeros((56, 56, 3), dtype=np.uint8))
    sample = Sample(id="a", source="s", task="mcq", question="?", options=("x", "y"), answer="A")
    prompt = Prompt(
        sample=sample,
        images=[picture],
        token_ids=[1, 2, 3],
        position_ids=torch.zeros((4, 3), dtype=torch.int64),
        vision=vision(4, 16),
    )
    score = RolloutScore(format=1.0, accuracy=0.0, length=0.0, total=1.0, parsed="B", reason="", truncated=False)
    rollout = Rollout(token_ids=[7, 8], log_probs=[-0.1, -0.2], text="t", score=score, policy_version=0)
    fields = _fields("3-1", prompt, rollout, {"group": "3-1"})
    assert fields["multi_modal_inputs"] == {"group": "3-1"}
    stored = sum(value.nbytes for value in fields.values() if isinstance(value, torch.Tensor))
    assert stored < 1000, "tokens, masks and positions of five tokens, where the picture alone is 75,264 bytes"
