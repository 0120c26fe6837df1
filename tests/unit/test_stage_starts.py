"""Where a supervised stage starts, and when it does not; what is said of it afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small import Small

from pathor1 import checkpoints, cli
from pathor1.checkpoints import Manifest, describe, seal
from pathor1.commands.evaluating import _chain
from pathor1.data.sources import sources
from pathor1.data.stream import Cursor, Reading, SampleStream, StreamState
from pathor1.errors import DataError, RunError
from pathor1.recipe import to_toml
from pathor1.report import page
from pathor1.rl.export import choose
from pathor1.samples import read, write
from pathor1.service.progress import progress
from pathor1.stage import StageRecipe
from pathor1.supervised import starts


def recipe(small: Small, runs: Path, **changes: Any) -> StageRecipe:
    values = {
        "name": "stage",
        "runs_dir": str(runs),
        "model": {"path": str(small.model)},
        "data": {"train": [str(small.train)]},
        "sft": {"steps": 9, "save_every": 3, **changes.pop("sft", {})},
        "cluster": {"accelerators_per_node": 1},
    }
    return StageRecipe.model_validate({**values, **changes})


def state(asked: StageRecipe, position: int = 0) -> StreamState:
    reading = Reading(tasks=asked.tasks, min_pixels=1, max_pixels=9, shuffle=True, workers=1)
    fresh = SampleStream(sources(asked.data), seed=0, reading=reading).state()
    (source,) = fresh.sources
    placed = {name: getattr(source, name) for name in source.__slots__} | {"cursor": Cursor(position=position)}
    return StreamState(seed=0, sources=(type(source)(**placed),))


def begun(asked: StageRecipe, *steps: int) -> Path:
    """A run's folder with checkpoints of these steps, of files that nobody reads."""
    folder = Path(asked.runs_dir) / asked.name
    for step in steps:
        path = checkpoints.folder(folder / "checkpoints", step)
        (path / "huggingface").mkdir(parents=True)
        (path / "huggingface/config.json").write_text("{}")
        found = describe(path, checkpoints.contents(path))
        seal(path, Manifest(step=step, stream=state(asked), ranks=2, files=found))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(to_toml(asked), encoding="utf-8")
    rows = [{"step": step, "loss": 2.0, "loss/a": 1.0, "loss/b": 3.0} for step in range(1, (steps or (0,))[-1] + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_stage_goes_on_behind_its_last_checkpoint_with_any_number_of_workers(small: Small, tmp_path: Path) -> None:
    asked = recipe(small, tmp_path)
    assert starts.check(asked) == 0
    begun(asked, 3, 6)
    assert starts.check(asked) == 6
    assert starts.check(recipe(small, tmp_path, cluster={"accelerators_per_node": 4, "nodes": 2})) == 6
    assert starts.check(recipe(small, tmp_path, sft={"steps": 12, "learning_rate": 1.0})) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"path": "OTHER"}}, "model.path = "),
        ({"sft": {"freeze": ["projector"]}}, "sft.freeze = [], not ['projector']"),
        ({"sft": {"lora": {"rank": 8}}}, "sft.lora = None, not Lora(rank=8, alpha=32)"),
        ({"sft": {"zero_stage": 3}}, "sft.zero_stage = 2, not 3"),
        ({"sft": {"batch_size": 8}}, "sft.batch_size = 32, not 8"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"sft": None, "cpt": {"steps": 9}}, "stage = 'sft', not 'cpt'"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    small: Small, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = begun(recipe(small, tmp_path), 3)
    other = small.model.parent / "same-model"
    if not other.exists():
        other.symlink_to(small.model)
    if "model" in changes:
        changes = {"model": {"path": str(other)}}
    if changes.get("sft", 0) is None:
        asked = recipe(small, tmp_path).model_copy(update={"sft": None, "cpt": recipe(small, tmp_path).sft})
    else:
        asked = recipe(small, tmp_path, **changes)
    with pytest.raises(RunError) as caught:
        starts.check(asked)
    assert str(caught.value).startswith(f"{folder}: a run of this name is there already, with {said}")
    assert "\n" not in str(caught.value)


def test_other_data_under_the_same_name_is_refused(small: Small, tmp_path: Path) -> None:
    mine = tmp_path / "mine.parquet"
    samples = list(read(small.train))
    write(samples[:20], mine)
    asked = recipe(small, tmp_path, data={"train": [str(mine)]})
    begun(asked, 3)
    write(samples[:21], mine)
    with pytest.raises(DataError, match=r"1 files of 20 rows have become 1 of 21"):
        starts.check(asked)


@pytest.mark.parametrize("command", ["cpt", "sft"])
def test_a_command_wants_its_own_table(
    small: Small, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(to_toml(recipe(small, tmp_path)).replace("[sft]", "[cpt]" if command == "sft" else "[sft]"))
    assert cli.main([command, str(path)]) == 2
    other = "cpt" if command == "sft" else "sft"
    assert f"{path}: has no [{command}] table; `pathor1 {other}` runs its [{other}]" in capsys.readouterr().err
    assert cli.main(["submit", str(path), "--stage", command]) == 2
    assert f"{path}: has no [{command}] table" in capsys.readouterr().err


def test_the_stages_of_a_model_are_found_from_its_folder(small: Small, tmp_path: Path) -> None:
    first = recipe(small, tmp_path, name="one")
    first = first.model_copy(update={"cpt": first.sft, "sft": None})
    begun(first, 3)
    second = recipe(small, tmp_path, name="two", model={"path": str(tmp_path / "one")})
    begun(second, 6, 9)
    assert _chain(str(tmp_path / "two")) == {
        "base": str(small.model),
        "cpt": str(tmp_path / "one/checkpoints/step-000003/huggingface"),
        "sft": str(tmp_path / "two/checkpoints/step-000009/huggingface"),
    }
    assert _chain(str(small.model)) == {"base": str(small.model)}
    assert _chain("Qwen/Qwen2.5-VL-3B-Instruct") == {"base": "Qwen/Qwen2.5-VL-3B-Instruct"}


def test_a_stage_has_a_report_a_status_and_something_to_export(small: Small, tmp_path: Path) -> None:
    folder = begun(recipe(small, tmp_path), 3, 6)
    text = page.write(folder).read_text(encoding="utf-8")
    assert "SFT on <code>" in text
    assert "6 of 9 steps done" in text
    for title in ("Loss", "Loss by source"):
        assert f">{title}<" in text
    assert "Answers</h2>" not in text
    now = progress(folder)
    assert now is not None
    assert (now.step, now.steps, now.checkpoint) == (6, 9, 6)
    assert choose(folder / "checkpoints").name == "step-000006"
