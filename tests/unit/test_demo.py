"""The demonstration by another algorithm: when it begins with the data and models of the one beside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pathor1 import demo
from pathor1.recipe import keys, load
from pathor1.rl.algorithms import DAPO, resolve

RECIPES = Path(__file__).parents[2] / "ray_jobs" / "recipes"
GRPO_RECIPE, DAPO_RECIPE = RECIPES / "demo_grpo.toml", RECIPES / "demo_dapo.toml"


def finished(folder: Path, algorithm: str = "grpo", **summary: Any) -> Path:
    """The folder of a finished demonstration of seed 7; its files are stubs."""
    for part in ("data/rendered", "models/base", "models/warm_start"):
        (folder / part).mkdir(parents=True)
    (folder / "data/rendered/train.parquet").write_text("pictures")
    (folder / "models/warm_start/model.safetensors").write_bytes(b"weights")
    (folder / "warm_start.jsonl").write_text('{"step": 1}\n')
    (folder / demo.MARKER).touch()
    written = {
        "algorithm": algorithm,
        "start": demo.start(GRPO_RECIPE, 7, []),
        "weights": demo.weights(folder / "models/warm_start"),
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(written))
    return folder


def beside(folder: Path, seed: int = 7, *overrides: str) -> Path | None:
    """What a demonstration by DAPO in the same place would begin with."""
    return demo.counterpart(folder.parent / "demo-dapo", "dapo", demo.start(DAPO_RECIPE, seed, overrides))


def test_the_two_recipes_begin_alike_and_differ_in_what_the_algorithms_need() -> None:
    place = demo.locations(Path("demo"), 7)
    grpo, dapo = (load(path, place).model_dump() for path in (GRPO_RECIPE, DAPO_RECIPE))

    def value(tree: dict[str, Any], key: str) -> Any:
        table, _, rest = key.partition(".")
        return value(tree[table], rest) if rest else tree[table]

    differing = {key: (value(grpo, key), value(dapo, key)) for key in keys() if value(grpo, key) != value(dapo, key)}
    assert differing == {
        "rl.algorithm": ("grpo", "dapo"),
        "rl.steps": (45, 30),
        "rl.kl_coefficient": (0.001, None),
        "rl.max_response_tokens": (16, 20),
        "evaluation.max_new_tokens": (None, 16),
    }
    assert resolve(load(DAPO_RECIPE).rl) == DAPO
    assert demo.start(GRPO_RECIPE, 7, []) == demo.start(DAPO_RECIPE, 7, [])


def test_a_finished_demonstration_of_the_same_beginning_is_used(tmp_path: Path) -> None:
    folder = finished(tmp_path / "demo")
    assert beside(folder) == folder
    assert beside(folder, 7, "rl.steps=3", "evaluation.samples=40") == folder  # what comes behind the warm start


@pytest.mark.parametrize(
    ("seed", "override"),
    [(8, "rl.steps=3"), (7, "warm_start.steps=20"), (7, "data.max_pixels=6272"), (7, 'model.dtype="bfloat16"')],
)
def test_one_of_another_beginning_is_not(tmp_path: Path, seed: int, override: str) -> None:
    assert beside(finished(tmp_path / "demo"), seed, override) is None


def test_one_of_other_counts_or_versions_is_not(tmp_path: Path) -> None:
    begun = demo.start(GRPO_RECIPE, 7, [])
    for name, other in (("counts", {}), ("versions", {**begun["versions"], "torch": "1.0"}), ("difficulty", 0.5)):
        folder = finished(tmp_path / "demo", start={**begun, name: other})
        assert beside(folder) is None
        shutil.rmtree(folder)


@pytest.mark.parametrize("broken", ["summary.json", "data", "models/base", "warm_start.jsonl", demo.MARKER])
def test_one_that_is_not_whole_is_not(tmp_path: Path, broken: str) -> None:
    folder = finished(tmp_path / "demo")
    path = folder / broken
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert beside(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"algorithm": "grpo"}', "\x00"])
def test_one_whose_summary_says_something_else_is_not(tmp_path: Path, text: str) -> None:
    folder = finished(tmp_path / "demo")
    (folder / "summary.json").write_text(text)
    assert beside(folder) is None


def test_one_whose_warm_start_model_has_changed_since_is_not(tmp_path: Path) -> None:
    folder = finished(tmp_path / "demo")
    (folder / "models/warm_start/model.safetensors").write_bytes(b"others")
    assert beside(folder) is None


def test_weights_that_are_not_there_are_never_the_same(tmp_path: Path) -> None:
    folder = finished(tmp_path / "demo", weights=None)
    assert beside(folder) is None
    (folder / "models/warm_start/model.safetensors").unlink()
    assert demo.weights(folder / "models/warm_start") is None
    assert beside(folder) is None


def test_one_of_the_same_algorithm_is_not_and_the_last_of_several_is(tmp_path: Path) -> None:
    assert beside(finished(tmp_path / "again", "dapo")) is None
    old, new = finished(tmp_path / "old"), finished(tmp_path / "new")
    os.utime(old / "summary.json", (1, 1))
    assert beside(new) == new
    os.utime(new / "summary.json", (0, 0))
    assert beside(new) == old


def test_what_is_copied_is_the_new_runs_own(tmp_path: Path) -> None:
    folder, out = finished(tmp_path / "demo"), tmp_path / "demo-dapo"
    demo.clear(out)
    demo.copy_start(folder, out)
    assert demo.weights(out / "models/warm_start") == demo.weights(folder / "models/warm_start")
    assert (out / "warm_start.jsonl").read_text() == '{"step": 1}\n'
    assert not (out / "summary.json").exists()
    (out / "data/rendered/train.parquet").write_text("others")
    assert (folder / "data/rendered/train.parquet").read_text() == "pictures"


def test_a_demonstration_that_is_half_removed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(tmp_path / "demo")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        demo.clear(folder)
    assert (folder / "models/warm_start/model.safetensors").exists()
    assert beside(folder) is None


def test_a_step_without_an_update_has_no_probability_difference(tmp_path: Path) -> None:
    folder = demo.RunFolder.create(tmp_path, "run")
    (folder.evaluation / "held_out.json").write_text('{"accuracy": {}}')
    name = "rollout/probability_difference_max"
    folder.metrics.write_text(f'{{"step": 1, "{name}": 2e-5}}\n{{"step": 2}}\n{{"step": 3, "{name}": 3e-6}}\n')
    assert demo.summarize(folder, {})["max_probability_difference"] == 2e-5
    folder.metrics.write_text('{"step": 1}\n')
    assert demo.summarize(folder, {})["max_probability_difference"] is None
