"""Whether a run would fit: estimates worked by hand, and a real model's prompts against a recipe's limits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small import Small

from pathor1.checkpoints import MANIFEST
from pathor1.data.sources import sources
from pathor1.errors import ModelError, RunError
from pathor1.model.check import Size, size
from pathor1.recipe import Recipe, load
from pathor1.rl import memory, preflight
from pathor1.rl.preflight import Line, look, refuse_what_cannot_fit, table
from pathor1.storage import absolute

# Qwen2.5-VL-7B, from its config.
SEVEN_B = Size(parameters=8_292_166_656, layers=28, hidden=3584, vocabulary=152_064, key_value_heads=4, head=128)


def recipe(**values: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {"name": "a", "model": {"path": "m"}, "data": {"train": ["t"]}, "rl": {"steps": 1}}
    return Recipe.model_validate({**tree, **{name: {**tree.get(name, {}), **table} for name, table in values.items()}})


def test_a_rank_of_eight_holds_its_eighth_of_the_actor_and_its_whole_engine() -> None:
    made = recipe(
        rl={"max_tokens_per_update": 4000, "max_response_tokens": 2048},
        data={"max_prompt_tokens": 1024},
        cluster={"accelerators_per_node": 8},
        rollout={"tensor_parallel": 2},
    )
    found = memory.of_rank(SEVEN_B, made, with_reference=True)
    share = 4 * 8_292_166_656 // 8
    assert (found.weights, found.gradients, found.optimizer) == (2 * share, share, 2 * share)
    # An input of every layer in bfloat16; logits in bfloat16, and in float32 with their gradients.
    assert found.activations == 4000 * 3584 * 28 * 2 + 4000 * 152_064 * (2 + 4 + 4)
    assert found.engine == 8_292_166_656  # two bytes each, on two accelerators
    # Keys and values of 28 layers, four heads of 128, two bytes each: 56 KiB a token.
    assert found.key_value == 57_344 * (1024 + 2048)
    assert memory.of_rank(SEVEN_B, made, with_reference=False).weights == share
    assert found.training == 5 * share + found.activations
    assert found.generating == 4 * share + found.engine + found.key_value


def test_a_checkpoint_is_weights_two_moments_and_the_weights_again() -> None:
    assert memory.of_checkpoint(SEVEN_B) == 8_292_166_656 * (4 + 8 + 4)


def test_the_size_is_read_from_headers_and_config(small: Small) -> None:
    from transformers import AutoModelForImageTextToText

    found = size(str(small.model))
    assert found is not None
    model = AutoModelForImageTextToText.from_pretrained(small.model)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    text = model.config.text_config
    assert (found.layers, found.hidden, found.vocabulary) == (
        text.num_hidden_layers,
        text.hidden_size,
        text.vocab_size,
    )
    assert size("Qwen/Qwen2.5-VL-7B-Instruct") is None


def test_a_model_whose_download_was_cut_is_refused(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small.model, folder)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no model-00002-of-00002.safetensors; download the model again"):
        size(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelError, match="model.safetensors: not a safetensors file"):
        size(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no model.safetensors; download"):
        size(str(folder))


def of_small(small: Small, tmp_path: Path, *overrides: str, accelerator: str = "cpu") -> dict[str, Line]:
    made = absolute(load(small.recipe, [f"runs_dir={json.dumps(str(tmp_path))}", *overrides]))
    return {line.what: line for line in look(made, sources(made.data), accelerator=accelerator)}


def test_a_run_that_fits(small: Small, tmp_path: Path) -> None:
    lines = of_small(small, tmp_path)
    assert list(lines) == ["prompt tokens", "image tokens", "questions", "memory of a node", "disk"]
    assert {line.verdict for line in lines.values()} == {"ok"}
    # 56 x 56 pixels are 4 x 4 patches of 14, four of which are merged into one token.
    assert lines["image tokens"].needs == "at most 4, 99 % below 4"
    assert lines["questions"].needs == "32 (4 steps of 8)"
    assert lines["questions"].has == "300 rows: 0.11 epochs"


def test_a_run_that_is_resumed_has_some_of_its_checkpoints(small: Small, tmp_path: Path) -> None:
    assert "(3 checkpoints of" in of_small(small, tmp_path, "rl.keep_checkpoints=1")["disk"].needs
    for step in (1, 2, 3):
        folder = tmp_path / f"run/checkpoints/step-00000{step}"
        folder.mkdir(parents=True)
        (folder / MANIFEST).touch()
    assert "(1 checkpoints of" in of_small(small, tmp_path, "rl.keep_checkpoints=1")["disk"].needs


@pytest.mark.parametrize(
    ("override", "what", "advice"),
    [
        ("data.max_prompt_tokens=20", "prompt tokens", "100.0% of 300 samples overflow, such as rendered/5/train/0, "),
        ("rl.max_tokens_per_update=10000000000", "memory of a node", "lower rl.max_tokens_per_update"),
        ("rl.keep_checkpoints=10000000", "disk", "lower rl.keep_checkpoints"),
    ],
)
def test_what_does_not_fit_is_named_with_what_to_do(
    small: Small, tmp_path: Path, override: str, what: str, advice: str
) -> None:
    lines = of_small(small, tmp_path, override)
    assert [line.what for line in lines.values() if line.verdict == "fails"] == [what]
    assert advice in lines[what].advice
    made = absolute(load(small.recipe, [f"runs_dir={json.dumps(str(tmp_path))}", override]))
    with pytest.raises(RunError, match=f"^the run cannot fit: {what}: needs "):
        refuse_what_cannot_fit(made, sources(made.data), accelerator="cpu")


def test_a_few_prompts_too_long_are_a_warning(small: Small, tmp_path: Path) -> None:
    lengths = of_small(small, tmp_path)["prompt tokens"].needs
    longest = int(lengths.split(",")[0].removeprefix("at most "))
    line = of_small(small, tmp_path, f"data.max_prompt_tokens={longest - 1}", "data.max_bad_fraction=0.5")[
        "prompt tokens"
    ]
    assert line.verdict == "warning"
    assert "raise data.max_prompt_tokens" in line.advice


def test_the_gpus_of_elsewhere_are_not_judged(small: Small, tmp_path: Path) -> None:
    lines = of_small(small, tmp_path, accelerator="gpu")
    assert lines["memory of a GPU"].verdict == lines["vLLM's KV cache"].verdict == "unknown"
    assert lines["memory of a GPU"].needs.startswith("0.")


def test_a_container_gives_what_its_limit_leaves(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 200\ninactive_file 60\n")
    assert preflight.free_memory(tmp_path) == 1000 - 300 + 60
    (tmp_path / "memory.max").write_text("max\n")
    assert preflight.free_memory(tmp_path) > 1 << 20
    assert preflight.free_memory(tmp_path / "none") > 1 << 20


def test_the_table_is_aligned_and_ends_with_what_to_do() -> None:
    lines = [
        Line(what="disk", needs="5.0 GB", has="1.0 GB free", verdict="fails", advice="free some space"),
        Line(what="questions", needs="10", has="20 rows", verdict="ok"),
    ]
    assert table(lines).splitlines() == [
        "           the run needs  there is",
        "disk       5.0 GB         1.0 GB free  fails",
        "questions  10             20 rows      ok",
        "disk: free some space",
    ]
