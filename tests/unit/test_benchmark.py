"""Recipes of benchmarks: shipped ones load, and what is wrong is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathor1 import cli
from pathor1.benchmark import BenchmarkRecipe, is_benchmark, load, of_run
from pathor1.checkpoints import model_of
from pathor1.errors import RecipeError, RunError
from pathor1.evaluation.published import named
from pathor1.evaluation.run import evaluate, kinds
from pathor1.recipe import keys, to_toml
from pathor1.recipe import load as load_run
from pathor1.storage import absolute_benchmark

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "ray_jobs/recipes/benchmarks").glob("*.toml"))
DEMO = ROOT / "ray_jobs/recipes/demo_grpo.toml"
SMALLEST = '[data]\ntest = ["q.parquet"]\n[benchmark]\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "b.toml"
    path.write_text(f'name = "b"\n{text}')
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    assert is_benchmark(path)
    again = tmp_path / "again.toml"
    again.write_text(to_toml(recipe))
    assert load(again) == recipe
    if recipe.benchmark.published is not None:
        named(recipe.benchmark.published)


def test_the_papers_benchmarks_are_there() -> None:
    found = {path.stem: load(path) for path in SHIPPED}
    assert found.keys() == {
        "pathmmu_test_tiny",
        "pathmmu_test",
        "pathmmu_val",
        "medxpertqa_mm",
        "omnimedvqa",
        "yes_no",
        "open_vqa",
    }
    assert [found[f"pathmmu_{split}"].data.test for split in ("test_tiny", "test", "val")] == [
        ["data/pathmmu/test_tiny"],
        ["data/pathmmu/test"],
        ["data/pathmmu/val"],
    ]
    assert found["open_vqa"].judge is not None
    assert kinds(found["open_vqa"]) == ["greedy"]
    assert kinds(load(SHIPPED[0], ["evaluation.sampled_answers=8", "evaluation.checks=[]"])) == ["greedy", "sampled"]


def test_the_smallest_recipe(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, SMALLEST))
    assert recipe.max_new_tokens == 2048
    assert (recipe.data.tasks, recipe.benchmark.columns, recipe.evaluation.sampled_answers) == (
        ["mcq", "yes_no"],
        "source",
        0,
    )
    assert all(field.description and field.description.endswith((".", "]")) for field in keys(BenchmarkRecipe).values())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[rl]\nsteps = 3", "unknown key rl"),
        ("[judge]\nurl = 'http://x/v1'\nmodel = 'm'", 'data.tasks has no "open"'),
        ("[evaluation]\nby = ['organ']", "'organ' is none of source, task, subfield, split, level and meta.NAME"),
        ("[evaluation]\nchecks = ['blindfold']", "evaluation.checks[0]"),
        ("[models]\nmine = 'ftp2://x'", None),
        ("[models]\nmine = 'https://'", "has to be http(s)://HOST"),
        ("[models]\nmine = 'https://me:secret@host/v1'", "may hold no user, key or query"),
        ("[endpoint]\nkey_variable = 'sk-secret'", "has to be the name of an environment variable"),
    ],
)
def test_what_is_wrong_is_said_and_no_secret_shown(tmp_path: Path, more: str, said: str | None) -> None:
    path = write(tmp_path, f"{SMALLEST}{more}\n")
    if said is None:
        load(path)
        return
    assert said in message(path)
    assert "secret" not in message(path)


def test_a_judge_needs_open_questions_and_no_key_in_its_url(tmp_path: Path) -> None:
    text = '[data]\ntest = ["q"]\ntasks = ["open"]\n[benchmark]\n[judge]\nmodel = "m"\nurl = "{}"\n'
    assert load(write(tmp_path, text.format("https://host/v1"))).judge is not None
    assert "may hold no user" in message(write(tmp_path, text.format("https://host/v1?key=secret")))
    assert "has to be http(s)" in message(write(tmp_path, text.format("host")))


def test_where_and_models_are_tables(tmp_path: Path) -> None:
    path = write(
        tmp_path, f'{SMALLEST}where = {{ "meta.organ" = ["skin"], subfield = ["ihc"] }}\n[models]\na = "m/a"\n'
    )
    recipe = load(path, ["models.b=http://host/v1#x"])
    assert recipe.benchmark.where == {"meta.organ": ["skin"], "subfield": ["ihc"]}
    assert recipe.models == {"a": "m/a", "b": "http://host/v1#x"}
    assert "'organ' is none of" in message(write(tmp_path, f'{SMALLEST}where = {{ organ = ["skin"] }}\n'))


def test_paths_become_absolute_and_servers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHOR1_STORAGE", str(tmp_path))
    models = '[models]\na = "runs/a"\nb = "http://host/v1#x"\nc = "Qwen/Qwen2.5-VL-3B-Instruct"\n'
    recipe = absolute_benchmark(load(write(tmp_path, f"{SMALLEST}{models}")))
    assert recipe.data.test == [str(tmp_path / "q.parquet")]
    assert recipe.runs_dir == str(tmp_path / "runs")
    assert recipe.models == {
        "a": str(tmp_path / "runs/a"),
        "b": "http://host/v1#x",
        "c": "Qwen/Qwen2.5-VL-3B-Instruct",
    }


def test_a_runs_evaluation_is_a_benchmark_with_the_runs_settings() -> None:
    run = load_run(DEMO, ["evaluation.samples=7"])
    recipe = of_run(run, {"base": "m"})
    assert recipe.data.test == run.data.test
    assert (recipe.max_new_tokens, recipe.data.max_prompt_tokens, recipe.data.system_prompt) == (16, 128, "none")
    assert (recipe.rollout.dtype, recipe.rollout.engines, recipe.rollout.memory_fraction) == ("float32", 1, 0.6)
    assert recipe.evaluation.samples == 7
    assert kinds(recipe) == ["greedy", "sampled", "shuffled_pictures"]
    spread = load_run(
        DEMO, ["cluster.accelerators_per_node=8", "rollout.tensor_parallel=2", "rl.prompts_per_update=16"]
    )
    assert of_run(spread, {}).rollout.engines == 4
    with pytest.raises(RecipeError, match=r"data\.test names no file"):
        of_run(load_run(DEMO, ["data.test=[]"]), {})


def test_a_checkpoint_of_a_run_is_found(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunError, match="a run without a checkpoint"):
        model_of(str(run))
    for step in (2, 10, 12):
        (run / f"checkpoints/step-{step:06d}/huggingface").mkdir(parents=True)
        if step != 12:  # without its manifest it is not complete
            (run / f"checkpoints/step-{step:06d}/manifest.json").write_text("{}")
    assert model_of(str(run)) == str(run / "checkpoints/step-000010/huggingface")
    assert model_of(str(run / "checkpoints/step-000002")) == str(run / "checkpoints/step-000002/huggingface")
    assert model_of("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert model_of("http://host/v1#x") == "http://host/v1#x"


def test_nothing_to_evaluate_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, SMALLEST)
    with pytest.raises(RecipeError, match=r"no model to evaluate; add a table \[models\], or --model"):
        evaluate(load(path, [f"runs_dir={tmp_path}"]))
    command = ["evaluate", str(path), "--set", f"runs_dir={tmp_path}", "--model", "mine=http://localhost:9/v1#m"]
    assert cli.main(command) == 2
    assert "q.parquet: no such file" in capsys.readouterr().err
    assert cli.main([*command, "--set", "benchmark.published=pathmmu"]) == 2
    assert "benchmark.published = 'pathmmu': none of pathmmu-test-tiny" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["b.toml"]
