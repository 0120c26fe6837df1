"""Recipes of supervised stages: what they may say, and those that come with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathor1.errors import RecipeError
from pathor1.recipe import to_toml
from pathor1.samples import TASKS
from pathor1.stage import StageRecipe, is_stage, load, load_run
from pathor1.training import Steps, WarmStart

ROOT = Path(__file__).parents[2] / "ray_jobs/recipes"
SHIPPED = sorted((ROOT / "stages").glob("*.toml"))
SMALLEST = 'name = "s"\n[model]\npath = "m"\n[data]\ntrain = ["t.parquet"]\n[sft]\nsteps = 5\n'


def write(tmp_path: Path, text: str = SMALLEST) -> Path:
    path = tmp_path / "stage.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_are_read_and_written_back(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    assert load(write(tmp_path, to_toml(recipe))) == recipe
    assert recipe.workers == 8
    assert load(path, ["cluster.nodes=4"]).workers == 32
    assert path.stem.endswith(recipe.stage)


def test_each_size_has_both_stages_and_one_begins_with_the_other() -> None:
    assert [path.stem for path in SHIPPED] == [
        f"patho_r1_{size}_{stage}" for size in ("3b", "7b") for stage in ("cpt", "sft")
    ]
    for size in ("3b", "7b"):
        before = load(ROOT / f"stages/patho_r1_{size}_cpt.toml")
        assert load(ROOT / f"stages/patho_r1_{size}_sft.toml").model.path == f"{before.runs_dir}/{before.name}"


def test_the_numbers_of_steps_are_those_that_the_comments_say() -> None:
    cpt, sft = (load(ROOT / f"stages/patho_r1_7b_{stage}.toml").training for stage in ("cpt", "sft"))
    assert abs(cpt.steps * cpt.batch_size - 3_500_000) < cpt.batch_size
    assert abs(sft.steps * sft.batch_size - 3 * 500_000) < sft.batch_size
    assert round(sft.warmup_steps / sft.steps, 3) == 0.1


def test_a_stage_trains_on_its_own_tasks_unless_it_is_told_others(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load(path).tasks == tuple(task for task in TASKS if task != "caption")
    assert load(write(tmp_path, SMALLEST.replace("[sft]", "[cpt]"))).tasks == ("caption",)
    assert load(path, ['data.tasks=["caption", "open"]']).tasks == ("caption", "open")


def test_a_recipe_says_by_its_tables_what_it_is(tmp_path: Path) -> None:
    assert is_stage(write(tmp_path))
    assert not is_stage(ROOT / "demo_grpo.toml")
    assert isinstance(load_run(write(tmp_path)), StageRecipe)
    assert not isinstance(load_run(ROOT / "demo_grpo.toml"), StageRecipe)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("cpt.steps=3", "needs one of the tables [cpt] and [sft]: a stage is a run, with a recipe of its own"),
        (
            'sft.freeze=["vision"]',
            "sft.freeze[0] = \"vision\": must be 'vision_tower', 'projector' or 'language_model'",
        ),
        (
            'sft.freeze=["vision_tower", "projector", "language_model"]',
            "freeze names all parts of the model, so that there is nothing to train",
        ),
        (
            'sft.offload=["parameters"]',
            'offload = ["parameters"] needs zero_stage = 3, not 2, where each worker has them all',
        ),
        (
            "sft.max_tokens=20000",
            "max_tokens_per_pass = 16384 is below max_tokens = 20000; the longest sample has to fit",
        ),
        ("sft.freez=[]", "unknown key sft.freez; did you mean sft.freeze?"),
        ("sft.lora.r=8", "unknown key sft.lora.r"),
        ("rl.steps=3", "unknown key rl"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, override: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path), [override])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_with_adapters_all_parts_may_be_frozen(tmp_path: Path) -> None:
    freeze = 'sft.freeze=["vision_tower", "projector", "language_model"]'
    lora = load(write(tmp_path), [freeze, "sft.lora.rank=8"]).training.lora
    assert lora is not None
    assert (lora.rank, lora.alpha) == (8, 32)


def test_a_warm_start_is_a_stage_with_the_same_numbers_that_trains_everything() -> None:
    warm = WarmStart(model="m", data=["d"], steps=7, batch_size=48, learning_rate=2e-3, zero_stage=1, max_tokens=20000)
    stage = warm.stage()
    assert all(getattr(stage, name) == getattr(warm, name) for name in Steps.model_fields)
    assert (stage.freeze, stage.lora, stage.max_tokens_per_pass) == ([], None, 20000)
