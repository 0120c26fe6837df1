"""The cores of a machine are shared by its ranks, where nobody has said otherwise and the model is worth it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pathor1.backends import cpu_threads


@pytest.mark.parametrize(("cores", "ranks", "expected"), [(16, 1, 16), (16, 4, 4), (16, 5, 3), (2, 4, 1)])
def test_a_rank_has_its_share(monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv(cpu_threads.RANKS, str(ranks))
    before = torch.get_num_threads()
    try:
        cpu_threads.take()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_without_the_variable_threads_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cpu_threads.RANKS, raising=False)
    before = torch.get_num_threads()
    cpu_threads.take()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("megabytes", "set_by_user", "accelerator", "expected"),
    [(2, None, "cpu", "2"), (0.5, None, "cpu", None), (2, "1", "cpu", None), (2, None, "gpu", None)],
)
def test_who_gets_a_share(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    megabytes: float,
    set_by_user: str | None,
    accelerator: str,
    expected: str | None,
) -> None:
    from safetensors.torch import save_file

    from pathor1.recipe import Recipe
    from pathor1.rl.run import _environment

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    (tmp_path / "config.json").write_text("{}")
    save_file({"large": torch.zeros(int(megabytes * 2**18)), "small": torch.zeros(7)}, tmp_path / "model.safetensors")
    recipe = Recipe.model_validate(
        {
            "name": "run",
            "model": {"path": str(tmp_path)},
            "data": {"train": ["t"]},
            "rl": {"steps": 1},
            "cluster": {"accelerators_per_node": 2},
        }
    )
    assert _environment(recipe, accelerator).get(cpu_threads.RANKS) == expected
