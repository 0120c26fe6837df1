"""Recipes of contrastive training and of its evaluation: what fits, what does not, and what comes with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathor1 import contrastive
from pathor1.cli import main
from pathor1.clip import prompts, published
from pathor1.contrastive import ClipRecipe, load, load_evaluation
from pathor1.errors import RecipeError
from pathor1.recipe import to_toml
from pathor1.stage import job_of, kind_of, load_run, steps_of
from pathor1.storage import absolute_clip, absolute_clip_evaluation

ROOT = Path(__file__).parents[2] / "ray_jobs/recipes/clip"
RECIPE = """
name = "mine"
[model]
architecture = "ViT-B-16-quickgelu"
[stage_1]
train = ["a.parquet"]
steps = 10
batch_size = 64
[cluster]
accelerators_per_node = 4
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("size", ["b", "l"])
def test_the_papers_recipes(size):
    found = load_run(ROOT / f"pathoclip_{size}.toml")
    assert isinstance(found, ClipRecipe)
    assert (job_of(found), kind_of(found)) == ("clip", "CLIP")
    assert found.stage_2 is not None
    assert set(found.stage_1.train) < set(found.stage_2.train), "stage 2 keeps what stage 1 had"
    assert found.model.architecture.endswith("-quickgelu")
    assert steps_of(found) == found.stage_1.steps + found.stage_2.steps
    # Five times 1.62 million and 3.5 million pairs.
    assert [round(stage.steps * stage.batch_size / 1e6, 1) for stage in found.stages] == [8.1, 17.5]
    assert contrastive.is_clip(ROOT / f"pathoclip_{size}.toml")


def test_the_papers_evaluation():
    found = load_evaluation(ROOT / "evaluation.toml")
    assert list(found.zero_shot) == list(published.zero_shot()["PathoCLIP-B"].accuracy)
    assert all(prompts.load(each.prompts) for each in found.zero_shot.values())
    assert published.retrieval(next(iter(found.retrieval)))
    assert list(found.probe) == ["LC-Lung", "BMT"]
    assert absolute_clip_evaluation(found).zero_shot["BMT"].prompts == "bmt"
    assert absolute_clip_evaluation(found).models["openai-b"] == "ViT-B-16-quickgelu@openai"
    assert Path(absolute_clip_evaluation(found).models["pathoclip-b"]).is_absolute()


def test_a_recipe_is_the_same_when_it_is_read_back(recipe, tmp_path):
    found = load(recipe, ["stage_1.weights=[1.0]", "seed=3", "model.activation=quick_gelu"])
    (tmp_path / "again.toml").write_text(to_toml(found))
    assert load(tmp_path / "again.toml") == found
    assert (found.stages, found.steps, found.workers) == ((found.stage_1,), 10, 4)
    absolute = absolute_clip(found)
    assert Path(absolute.stage_1.train[0]).is_absolute()
    assert absolute.model.architecture == "ViT-B-16-quickgelu"
    own = absolute_clip(load(recipe, ["model.architecture=own.json"]))
    assert Path(own.model.architecture).is_absolute()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("stage_1.batch_size=62", "stage_1.batch_size = 62 does not divide into 4 workers with 1 passes each"),
        ("stage_1.passes=3", "4 workers with 3 passes each; choose a multiple of 12"),
        ("stage_1.weights=[1.0, 2.0]", "weights has 2 numbers and train 1 entries"),
        ("model.architecture=''", "model needs an architecture, or the folder of weights"),
        ("model.activation='relu'", "must be 'gelu' or 'quick_gelu'"),
        ("data.crop=0.0", "must be above 0"),
        ("stage_2.steps=4", "stage_2.train is missing"),
        ("stage_1.batchsize=4", "unknown key stage_1.batchsize; did you mean stage_1.batch_size"),
        ("stage_1.train=[]", "must not be empty"),
    ],
)
def test_what_does_not_fit(recipe, change, told):
    with pytest.raises(RecipeError, match=told):
        load(recipe, [change])


def test_a_batch_of_one_has_nothing_to_be_told_from(recipe):
    with pytest.raises(RecipeError, match="one pair has nothing to be told from"):
        load(recipe, ["stage_1.batch_size=1", "cluster.accelerators_per_node=1"])


def fails(capsys, *arguments):
    assert main(["clip", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("pathor1: ")
    assert line.count("\n") == 1
    return line


def test_wrong_input_is_one_line(recipe, tmp_path, capsys):
    assert "no such file" in fails(capsys, "train", str(recipe), "--set", f"runs_dir={tmp_path / 'runs'}")
    evaluation = tmp_path / "evaluation.toml"
    evaluation.write_text('name = "e"\n')
    assert "no [retrieval.NAME] table" in fails(capsys, "retrieval", str(evaluation))
    sets = '[zero_shot.x]\ndata = ["none.parquet"]\nprompts = "bmt"\n'
    evaluation.write_text(f'name = "e"\n{sets}')
    assert "nothing to evaluate" in fails(capsys, "zero-shot", str(evaluation))
    assert "no such file" in fails(capsys, "zero-shot", str(evaluation), "--model", "m=nowhere")
    evaluation.write_text(f'name = "e"\n{sets.replace("bmt", "gone.json")}')
    assert "gone.json: cannot be read" in fails(capsys, "zero-shot", str(evaluation), "--model", "m=nowhere")
    assert "unknown key" in fails(capsys, "probe", str(evaluation), "--set", "prob.x=1")
    assert "a number of bits" in fails(capsys, "leaks", "a", "--against", "b", "--distance", "30")
    assert "at least 1" in fails(capsys, "shards", "a", "--out", str(tmp_path / "o"), "--pairs", "0")


def test_a_batch_that_is_larger_than_the_data(recipe, tmp_path, capsys):
    from formats import png

    from pathor1.samples import Sample, write

    pairs = [
        Sample(id=f"{n}", source="s", task="caption", question="", answer=f"caption {n}", images=(png(n),))
        for n in range(8)
    ]
    write(pairs, tmp_path / "few.parquet")
    changes = [f"runs_dir={tmp_path}", f'stage_1.train=["{tmp_path / "few.parquet"}"]']
    line = fails(capsys, "train", str(recipe), *(part for change in changes for part in ("--set", change)))
    assert "stage_1.batch_size = 64 and its files have 8 samples" in line
