"""The tables from subfields on: mistakes are one line each, paths become whole, and the page's example loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pathor1.curation.level import LevelStage
from pathor1.curation.reason import ReasonStage
from pathor1.curation.recipe import load
from pathor1.curation.subfield import SubfieldStage
from pathor1.errors import RecipeError

ROOT = Path(__file__).parents[2]
SMALLEST = 'name = "books"\n[books]\npdfs = ["a.pdf"]\n'


def problem(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(SMALLEST + text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(path)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[subfield]\nlabels = []\n", "subfield.labels = []: must not be empty"),
        (
            '[subfield]\nlabels = ["a"]\nbatch_size = 9\nworkers = 2\n',
            "subfield.batch_size = 9 is not a multiple of subfield.workers = 2",
        ),
        (
            '[subfield]\nlabels = ["a"]\nkept = ["ihc", "other"]\n',
            "subfield.kept: 'other' is not among subfield.classes, or no subfield of a sample",
        ),
        ("[level]\n", "level.model is missing, and has no default"),
        ('[reason]\nmodel = "m"\nurl = "api.x.com"\n', 'reason.url = "api.x.com": the URL of a server has to be'),
        (
            '[reason]\nmodel = "m"\nbudget = 10.0\n',
            "reason.budget needs reason.input_price and reason.output_price",
        ),
        (
            '[reason]\nmodel = "m"\ntasks = ["description"]\ntasks_each = 2\n',
            "reason.tasks_each = 2 is above the number of reason.tasks",
        ),
        ("[questions]\noptions = 7\n", "questions.options = 7: must be at most 6"),
        ("[assemble]\npicture_distance = 16\n", "assemble.picture_distance = 16: must be at most 15"),
    ],
)
def test_mistakes_are_one_line_each(text: str, line: str, tmp_path: Path) -> None:
    assert problem(tmp_path, text).startswith(line)


def test_the_key_is_never_shown(tmp_path: Path) -> None:
    said = problem(tmp_path, '[reason]\nmodel = "m"\nkey_variable = "sk-a-secret"\n')
    assert "sk-a-secret" not in said
    assert "name of an environment variable" in said


def test_a_stage_without_its_table_says_which_is_missing(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(SMALLEST)
    recipe = load(tmp_path / "recipe.toml")
    for stage, table in ((SubfieldStage, "subfield"), (LevelStage, "level"), (ReasonStage, "reason")):
        with pytest.raises(RecipeError, match=rf"the table \[{table}\]"):
            stage(recipe)


def test_the_pages_example_loads_with_whole_paths(tmp_path: Path) -> None:
    page = (ROOT / "docs/curation-samples.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "recipe.toml").write_text(SMALLEST + example)
    recipe = load(tmp_path / "recipe.toml")
    here = Path.cwd()
    assert recipe.subfield is not None
    assert recipe.level is not None
    assert recipe.reason is not None
    assert recipe.subfield.labels == [str(here / "labels.csv")]
    assert recipe.subfield.weights == str(here / "efficientnet_b0.safetensors")
    assert recipe.level.names == str(here / "level_names.toml")
    assert recipe.reason.model == "deepseek-reasoner", "a name on a server is no path"
    assert recipe.assemble.benchmarks == [str(here / "data/pathmmu/test"), str(here / "data/pathvqa/test")]
