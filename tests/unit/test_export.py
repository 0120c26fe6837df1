"""What `pathor1 export` writes is what transformers loads; `tests/engine/test_rl.py` has it of a real checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import Small

from pathor1 import checkpoints, cli
from pathor1.checkpoints import Manifest, Score
from pathor1.data.stream import StreamState


@pytest.fixture
def run(small: Small, tmp_path: Path) -> Path:
    """The folder of a run with checkpoints of two steps, the first the better one, as verl writes their models."""
    run = tmp_path / "run"
    for step, score in ((2, 0.75), (4, 0.5)):
        path = checkpoints.folder(run / "checkpoints", step)
        model = path / "huggingface"
        shutil.copytree(small.model, model)
        config = json.loads((model / "config.json").read_text())
        config |= {"dtype": "bfloat16", "attn_implementation": "flash_attention_2"}
        config["text_config"]["dtype"] = "bfloat16"
        (model / "config.json").write_text(json.dumps(config))
        weights = load_file(model / "model.safetensors")
        save_file(
            {name: tensor + step for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"}
        )
        written = checkpoints.describe(path, checkpoints.contents(path))
        score_ = Score(metric="reward/accuracy", mean=score, steps=2)
        state = StreamState(seed=0, sources=())
        checkpoints.seal(path, Manifest(step=step, stream=state, ranks=1, files=written, score=score_))
    shutil.copyfile(small.recipe, run / "recipe.toml")
    return run


def added(small: Small, folder: Path) -> float:
    """By how much the weights are above the model's own: the step that they are of."""
    before, after = load_file(small.model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    return round(float((after["lm_head.weight"] - before["lm_head.weight"]).mean()), 3)


def test_the_last_the_best_and_the_one_that_is_asked_for(
    run: Path, small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, step in (([], 4), (["--best"], 2), (["--step", "2"], 2)):
        to = tmp_path / "_".join(["to", *options])
        assert cli.main(["export", str(run), "--to", str(to), *options]) == 0
        assert capsys.readouterr().out == f"{to}: the model of step-00000{step}, in float32\n"
        assert added(small, to) == step
        assert {path.name for path in to.iterdir()} == {path.name for path in small.model.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "to", "to_--best", "to_--step_2"]


def test_the_type_is_the_runs_and_the_config_says_so(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    source = load_file(run / "checkpoints/step-000004/huggingface/model.safetensors")
    for dtype in ("float32", "bfloat16"):
        recipe = (run / "recipe.toml").read_text().replace('dtype = "float32"', f'dtype = "{dtype}"')
        (run / "recipe.toml").write_text(recipe)
        to = tmp_path / dtype
        assert cli.main(["export", str(run), "--to", str(to)]) == 0
        config = json.loads((to / "config.json").read_text())
        assert (config["dtype"], config["text_config"]["dtype"]) == (dtype, dtype)
        assert "attn_implementation" not in config
        kind = getattr(torch, dtype)
        stored = load_file(to / "model.safetensors")
        assert all(torch.equal(stored[name], tensor.to(kind)) for name, tensor in source.items())
        model = AutoModelForImageTextToText.from_pretrained(to)
        assert {parameter.dtype for parameter in model.parameters()} == {kind}


def test_weights_in_several_files_keep_their_index(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints/step-000004"
    model = path / "huggingface"
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    parts = {
        "model-00001-of-00002.safetensors": sorted(weights)[:9],
        "model-00002-of-00002.safetensors": sorted(weights)[9:],
    }
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, model / file, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in weights.values())
    index = {
        "metadata": {"total_size": size},
        "weight_map": {name: file for file, names in parts.items() for name in names},
    }
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    written = checkpoints.describe(path, checkpoints.contents(path))
    checkpoints.seal(path, Manifest(step=4, stream=StreamState(seed=0, sources=()), ranks=1, files=written))
    recipe = (run / "recipe.toml").read_text().replace('dtype = "float32"', 'dtype = "bfloat16"')
    (run / "recipe.toml").write_text(recipe)
    assert cli.main(["export", str(run), "--to", str(tmp_path / "to")]) == 0
    exported = json.loads((tmp_path / "to/model.safetensors.index.json").read_text())
    assert exported == {"metadata": {"total_size": size // 2}, "weight_map": index["weight_map"]}


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["export", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("pathor1: ")


def test_a_damaged_model_is_refused_and_nothing_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoints/step-000004/huggingface/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    line = mistake(capsys, run, "--to", tmp_path / "to")
    assert line.startswith(f"{file}: does not have the content that it was written with; remove the folder ")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_cannot_be_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, run, "--to", run) == f"{run}: is there already; name a folder that is not, or remove it"
    line = mistake(capsys, run, "--to", tmp_path / "to", "--step", "3")
    assert line == f"{run / 'checkpoints'}: no complete checkpoint of step 3; there are steps 2, 4"
    line = mistake(capsys, tmp_path, "--to", tmp_path / "to")
    assert line.startswith(f"{tmp_path}: not the folder of a run, it has no recipe.toml")
    shutil.rmtree(run / "checkpoints")
    line = mistake(capsys, run, "--to", tmp_path / "to")
    assert line.startswith(f"{run / 'checkpoints'}: holds no complete checkpoint; ")
