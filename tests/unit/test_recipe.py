"""The recipe: what loads, what every mistake is called, and that a resolved copy is the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pathor1.errors import RecipeError
from pathor1.recipe import Recipe, keys, load, to_toml

RECIPES = sorted((Path(__file__).parents[2] / "ray_jobs" / "recipes").glob("*.toml"))
SMALLEST = """
name = "a-run"
[model]
path = "model"
[data]
train = ["train.parquet"]
[rl]
steps = 4
[cluster]
accelerators_per_node = 2
"""
WARM_START = '[warm_start]\nmodel = "base"\ndata = ["w.parquet"]\nsteps = 5\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_smallest_recipe_and_defaults(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, SMALLEST))
    assert (recipe.name, recipe.runs_dir, recipe.seed) == ("a-run", "runs", 0)
    assert (recipe.rl.algorithm, recipe.rl.prompts_per_step, recipe.rl.group_size) == ("grpo", 128, 8)
    assert recipe.rl.learning_rate == 1e-6
    assert recipe.rl.clip_high is None
    assert recipe.warm_start is None
    assert recipe.verl == {}


NO_STORE = "must be a folder in an object store, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_load_and_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    assert load(write(tmp_path, to_toml(recipe))) == recipe


def test_there_are_the_shipped_recipes() -> None:
    assert {path.name for path in RECIPES} >= {
        "demo_grpo.toml",
        "demo_dapo.toml",
        "patho_r1_7b_grpo.toml",
        "patho_r1_3b_dapo.toml",
    }


def test_recipes_of_the_papers_models() -> None:
    grpo, dapo = (load(path) for path in reversed([path for path in RECIPES if "patho_r1" in path.name]))
    assert (grpo.model.path, grpo.rl.algorithm) == ("Qwen/Qwen2.5-VL-7B-Instruct", "grpo")
    assert (grpo.rl.prompts_per_step, grpo.rl.prompts_per_update, grpo.rl.group_size) == (512, 128, 5)
    assert (dapo.model.path, dapo.rl.algorithm) == ("Qwen/Qwen2.5-VL-3B-Instruct", "dapo")
    assert (dapo.rl.clip_low, dapo.rl.clip_high, dapo.rl.kl_coefficient) == (0.2, 0.28, 0.0)
    assert {grpo.cluster.accelerators_per_node, dapo.cluster.accelerators_per_node} == {8}


def test_to_toml_writes_every_value_that_is_set(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, SMALLEST + WARM_START))
    text = "\n" + to_toml(recipe)
    missing = [key for key in keys() if f"\n{key.rpartition('.')[2]} = " not in text]
    not_set = [key for key, field in keys().items() if not field.is_required() and field.default is None]
    assert missing == [*not_set, "verl"]


def test_every_key_is_described() -> None:
    assert all(field.description and field.description.endswith((".", "]")) for field in keys().values())
    assert 55 <= len(keys()) <= 94  # verl has some 800


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "no.toml"
    assert message(path) == f"{path}: no such recipe; ray_jobs/recipes/ holds some to start from"


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"name = '\xff'")
    assert message(path) == f"{path}: not a text file in UTF-8 (byte 8)"


def test_malformed_toml_says_where(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "a"\n[rl\nsteps = 3\n')
    assert message(path) == f"{path}: not TOML: Expected ']' at the end of a table declaration (at line 2, column 4)"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("rl.groupsize=8", "unknown key rl.groupsize; did you mean rl.group_size?"),
        ("group_size=8", "unknown key group_size; did you mean rl.group_size?"),
        ("rl.max_prompt_tokens=9", "unknown key rl.max_prompt_tokens; did you mean data.max_prompt_tokens?"),
        ("rl.tensor_paralel=2", "unknown key rl.tensor_paralel; did you mean rollout.tensor_parallel?"),
        ("rl.reward.acuracy=2", "unknown key rl.reward.acuracy; did you mean rl.reward.accuracy?"),
        ("warmstart.steps=2", "unknown key warmstart; did you mean warm_start?"),
        ("reward.format=2", "unknown key reward; did you mean rl.reward?"),
        ("rl.zzz=2", "unknown key rl.zzz; docs/recipes.md lists all keys"),
        ("rl.group_size='8'", 'rl.group_size = "8": must be a whole number'),
        ("rl.group_size=eight", 'rl.group_size = "eight": must be a whole number'),
        ("rl.group_size=8.5", "rl.group_size = 8.5: must be a whole number"),
        ("rl.group_size=true", "rl.group_size = true: must be a whole number"),
        ("rl.group_size=1", "rl.group_size = 1: must be at least 2"),
        ("rl.steps=0", "rl.steps = 0: must be above 0"),
        ("rl.learning_rate=fast", 'rl.learning_rate = "fast": must be a number'),
        ("rl.learning_rate=inf", "rl.learning_rate = Infinity: must be a finite number"),
        ("rl.top_p=1.5", "rl.top_p = 1.5: must be at most 1"),
        ("rollout.memory_fraction=1", "rollout.memory_fraction = 1: must be below 1"),
        ("rl.algorithm=ppo", "rl.algorithm = \"ppo\": must be 'grpo' or 'dapo'"),
        (
            "rl.best_by='actor/kl'",
            (
                "rl.best_by = \"actor/kl\": must be 'reward/accuracy', 'reward/mean', 'reward/format', 'reward/length' "
                "or 'evaluation/accuracy'"
            ),
        ),
        ("rl.checkpoint_store=runs", f'rl.checkpoint_store = "runs": {NO_STORE}'),
        ("rl.checkpoint_store='s3:///x'", f'rl.checkpoint_store = "s3:///x": {NO_STORE}'),
        ("rl.checkpoint_store='gs://b/*'", f'rl.checkpoint_store = "gs://b/*": {NO_STORE}'),
        ("rl.clip_high=wide", 'rl.clip_high = "wide": must be a number'),
        ("data.shuffle=1", "data.shuffle = 1: must be true or false"),
        ("data.train=x.parquet", 'data.train = "x.parquet": must be a list'),
        ("data.train=[]", "data.train = []: must not be empty"),
        ("data.train=[3]", "data.train[0] = 3: must be a text in quotes"),
        ("data.tasks=['open']", "data.tasks[0] = \"open\": must be 'mcq' or 'yes_no'"),
        ("rollout=5", "rollout = 5: must be a table"),
        ("verl=5", "verl = 5: must be a table"),
        ("name=My_Run", 'name = "My_Run": must be 1 to 47 of a-z, 0-9 and hyphens, with no hyphen first or last'),
    ],
)
def test_a_wrong_key_or_value(tmp_path: Path, override: str, line: str) -> None:
    assert message(write(tmp_path, SMALLEST), override) == f"--set: {line}"


def test_a_mistake_in_the_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST.replace("steps = 4", "steps = 4\ngroupsize = 8"))
    assert message(path) == f"{path}: unknown key rl.groupsize; did you mean rl.group_size?"


def test_missing_keys_and_tables(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST.replace("steps = 4", ""))
    assert message(path) == f"{path}: rl.steps is missing, and has no default"
    path = write(tmp_path, SMALLEST.replace('[model]\npath = "model"', ""))
    assert message(path) == f"{path}: the table [model] is missing"


def test_several_mistakes_are_one_line_unknown_keys_first(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST.replace("steps = 4", "stepps = 4\ntop_p = 3"))
    assert message(path) == f"{path}: unknown key rl.stepps; did you mean rl.steps? (and 2 more)"


def test_a_long_value_with_line_breaks_stays_one_short_line(tmp_path: Path) -> None:
    line = message(write(tmp_path, SMALLEST), f'rl.steps="{"a" * 5000}"', "rl.top_p=1.0")
    assert line == f'--set: rl.steps = "{"a" * 56}...: must be a whole number'
    path = write(tmp_path, SMALLEST.replace("steps = 4", 'steps = """a\nb"""'))
    assert message(path) == f'{path}: rl.steps = "a\\nb": must be a whole number'


@pytest.mark.parametrize("name", ["a", "0", "a" * 47, "a-b-0"])
def test_names(tmp_path: Path, name: str) -> None:
    assert load(write(tmp_path, SMALLEST), [f"name='{name}'"]).name == name


@pytest.mark.parametrize("name", ["", "a" * 48, "-a", "a-", "A", "a_b", "a/b", "a\\nb", "a\\n"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    assert "must be 1 to 47 of a-z" in message(write(tmp_path, SMALLEST), f'name="{name}"')


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["rl.prompts_per_step=30", "rl.prompts_per_update=8"],
            "rl.prompts_per_step = 30 is not a multiple of rl.prompts_per_update = 8",
        ),
        (
            ["rl.prompts_per_step=8", "rl.prompts_per_update=16"],
            "rl.prompts_per_step = 8 is not a multiple of rl.prompts_per_update = 16",
        ),
        (
            ["rl.max_response_tokens=16"],
            "rl.reward.overlong_cache_tokens = 512 is not below rl.max_response_tokens = 16",
        ),
        (
            ["rl.top_p=0.9", "rl.max_probability_difference=1e-3"],
            (
                "rl.max_probability_difference needs rl.top_p = 1, not 0.9: vLLM's probabilities are then those of the "
                "likeliest tokens alone"
            ),
        ),
        (
            ["rl.mode=colocate_async", "rl.max_carry_steps=0"],
            (
                'rl.mode = "colocate_async" asks questions before the step that learns from them: rl.max_carry_steps '
                "has to be 1 or more"
            ),
        ),
        (
            ["rl.mode=separate_async"],
            (
                'rl.mode = "separate_async" needs accelerators that train and others that generate, two at least; set '
                "cluster.rollout_accelerators"
            ),
        ),
        (
            ["cluster.rollout_accelerators=2"],
            (
                'cluster.rollout_accelerators = 2 needs rl.mode = "separate_async"; in mode sync the accelerators that '
                "train generate, too"
            ),
        ),
        (
            ["rl.mode=separate_async", "cluster.rollout_accelerators=3", "rollout.tensor_parallel=2"],
            "cluster.rollout_accelerators = 3 is not a multiple of rollout.tensor_parallel = 2",
        ),
        (
            ["rl.mode=separate_async", "cluster.rollout_accelerators=1", "rl.min_groups=33"],
            (
                'rl.min_groups = 33 is above rl.prompts_per_update = 32: with rl.mode = "separate_async" a step learns '
                "from so many groups at a time"
            ),
        ),
        (["data.min_pixels=900", "data.max_pixels=800"], "data.min_pixels = 900 is above data.max_pixels = 800"),
        (
            ["rollout.max_sequences=9000"],
            "rollout.max_sequences = 9000 is above rollout.max_batched_tokens = 8192; vLLM needs a token a sequence",
        ),
        (
            ["cluster.nodes=3", "cluster.accelerators_per_node=8"],
            (
                "rl.prompts_per_update x rl.group_size = 256 answers do not divide among "
                "cluster.nodes x cluster.accelerators_per_node = 24"
            ),
        ),
        (
            ["rollout.tensor_parallel=4"],
            "cluster.nodes x cluster.accelerators_per_node = 2 is not a multiple of rollout.tensor_parallel = 4",
        ),
        (
            ["rl.max_tokens_per_update=3000"],
            (
                "rl.max_tokens_per_update = 3000 is below data.max_prompt_tokens + rl.max_response_tokens = 3072; "
                "the longest answer has to fit"
            ),
        ),
        (
            ["model.dtype=float32", "model.attention=flash_attention_2"],
            'model.attention = "flash_attention_2" does not run with model.dtype = "float32"',
        ),
        (["rl.evaluate_every=5"], "rl.evaluate_every = 5 needs held-out samples; name their files in data.test"),
        (
            ["rl.early_stop_patience=3"],
            "rl.early_stop_patience = 3 needs evaluations within the run; set rl.evaluate_every",
        ),
        (
            ["rl.best_by=evaluation/accuracy"],
            "rl.best_by = evaluation/accuracy needs evaluations within the run; set rl.evaluate_every",
        ),
        (
            ["rl.best_by=evaluation/accuracy", "rl.evaluate_every=8", 'data.test=["t"]'],
            (
                "rl.best_by = evaluation/accuracy needs an evaluation of each checkpoint: rl.save_every = 20 is not a "
                "multiple of rl.evaluate_every = 8"
            ),
        ),
    ],
)
def test_values_that_do_not_fit_each_other(tmp_path: Path, overrides: list[str], line: str) -> None:
    path = write(tmp_path, SMALLEST + WARM_START)
    assert message(path, *overrides) == f"{path}: {line}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["rl.prompts_per_step=16", "rl.prompts_per_update=16"],
        ["rl.mode=colocate_async", "rl.max_carry_steps=1"],
        # The ranks have no engines then.
        ["rl.mode=separate_async", "cluster.rollout_accelerators=3", "rollout.tensor_parallel=3"],
        ["rl.reward.overlong_cache_tokens=2047"],
        ["data.min_pixels=501760"],
        ["rollout.max_sequences=8192"],
        ["rl.prompts_per_update=1", "cluster.accelerators_per_node=8", "rollout.tensor_parallel=8"],
        ["rl.max_tokens_per_update=3072"],
        ["rl.best_by=evaluation/accuracy", "rl.evaluate_every=20", "rl.early_stop_patience=1", 'data.test=["t"]'],
    ],
)
def test_values_that_just_fit(tmp_path: Path, overrides: list[str]) -> None:
    load(write(tmp_path, SMALLEST), overrides)


@pytest.mark.parametrize("entry", ["WANDB_API_KEY=hush", "", "8OCLOCK", "A-KEY"])
def test_a_secret_is_named_and_never_shown(tmp_path: Path, entry: str) -> None:
    path = write(tmp_path, SMALLEST)
    line = message(path, f'cluster.secrets=["HF_TOKEN", "{entry}"]')
    assert line == f"{path}: cluster.secrets: entry 2 is not the name of an environment variable"
    assert load(path, ['cluster.secrets=["HF_TOKEN"]']).cluster.secrets == ["HF_TOKEN"]


def test_overrides_are_toml_values_or_plain_text(tmp_path: Path) -> None:
    recipe = load(
        write(tmp_path, SMALLEST),
        [
            "rl.group_size = 16",
            "rl.learning_rate=3e-5",
            "data.shuffle=false",
            "data.test=['a.parquet', \"b.parquet\"]",
            "model.path=runs/a=b/model",
            "runs_dir='else where'",
            "rl.reward={format=0.5}",
            "rl.group_size=4",
        ],
    )
    assert recipe.rl.group_size == 4  # the last one counts
    assert recipe.rl.learning_rate == 3e-5
    assert recipe.data.shuffle is False
    assert recipe.data.test == ["a.parquet", "b.parquet"]
    assert recipe.model.path == "runs/a=b/model"
    assert recipe.runs_dir == "else where"
    assert recipe.rl.reward.format == 0.5


def test_an_override_can_bring_an_optional_table(tmp_path: Path) -> None:
    recipe = load(
        write(tmp_path, SMALLEST), ["warm_start.model=base", "warm_start.data=['w.parquet']", "warm_start.steps=7"]
    )
    assert recipe.warm_start is not None
    assert (recipe.warm_start.model, recipe.warm_start.steps) == ("base", 7)


@pytest.mark.parametrize("override", ["rl.group_size", "=8", "rl..group_size=8", ""])
def test_overrides_that_are_none(tmp_path: Path, override: str) -> None:
    line = message(write(tmp_path, SMALLEST), override)
    assert line == f"--set {override}: write it as key=value, for example --set rl.group_size=8"


def test_an_override_below_a_value(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST)
    assert message(path, "rl.steps.more=3") == "--set rl.steps.more=3: rl.steps is a value, not a table"


def test_verl_keys_are_flat_dotted_names_however_they_are_written(tmp_path: Path) -> None:
    text = SMALLEST + "[verl]\nactor.optim.betas = [0.9, 0.95]\n'actor.grad_clip' = 2.0\n[verl.trainer]\nextra = {}\n"
    recipe = load(write(tmp_path, text), ["verl.actor.grad_clip=3.0", "verl.trainer.name=x"])
    assert recipe.verl == {
        "actor.optim.betas": [0.9, 0.95],
        "actor.grad_clip": 3.0,
        "trainer.extra": {},
        "trainer.name": "x",
    }
    assert load(write(tmp_path, to_toml(recipe))) == recipe


def test_a_recipe_does_not_change(tmp_path: Path) -> None:
    recipe: Recipe = load(write(tmp_path, SMALLEST))
    with pytest.raises(ValidationError):
        setattr(recipe, "seed", 3)  # noqa: B010  # type checkers know that it is not allowed


@pytest.mark.parametrize(
    ("overrides", "steps"), [([], 1), (["rl.mode=colocate_async"], 2), (["rl.max_carry_steps=0"], 0)]
)
def test_how_long_a_group_may_wait_is_the_modes_where_it_is_not_said(
    tmp_path: Path, overrides: list[str], steps: int
) -> None:
    from pathor1.rl.algorithms import spell_out

    recipe = load(write(tmp_path, SMALLEST), overrides)
    assert recipe.rl.carry_steps == spell_out(recipe).rl.max_carry_steps == steps
