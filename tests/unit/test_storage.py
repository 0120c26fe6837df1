"""Where relative paths start, outside and inside a Ray job, and what is no path at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pathor1 import storage
from pathor1.errors import RecipeError
from pathor1.recipe import Recipe
from pathor1.storage import VARIABLE, absolute, root

ROOT = Path(__file__).parents[2]


def recipe(*, model: str = "Qwen/Qwen2.5-VL-3B-Instruct", warm_start: str | None = None, **values: Any) -> Recipe:
    tree: dict[str, Any] = {"name": "a", "model": {"path": model}, "rl": {"steps": 1}, **values}
    tree.setdefault("data", {"train": ["d/train.parquet", "/shared/*.parquet"], "test": ["d/t.parquet"]})
    if warm_start is not None:
        tree["warm_start"] = {"model": warm_start, "data": ["w/*.parquet"], "steps": 3}
    return Recipe.model_validate(tree)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with nothing said in the environment."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def job(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder such as Ray unpacks a job's working directory in."""
    copy = here / "ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123/sub"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    return copy


def test_it_is_the_folder_one_stands_in(here: Path) -> None:
    assert root() == here


def test_the_variable_wins_wherever_one_stands(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/shared/storage")
    assert root() == Path("/shared/storage")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv(VARIABLE, "~/storage")
    assert root() == Path("/home/someone/storage")


def test_an_empty_variable_says_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert root() == here


def test_an_empty_variable_says_nothing_in_a_job_either(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert root() == ROOT


def test_in_a_job_it_is_the_clone_that_is_installed_and_not_the_jobs_copy(job: Path) -> None:
    assert root() == ROOT


def test_in_a_job_without_a_clone_a_relative_path_is_refused(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_editable_clone", lambda: None)
    with pytest.raises(RecipeError, match="^d/train.parquet: .* nothing in a Ray job; set PATHOR1_STORAGE") as caught:
        absolute(recipe(runs_dir="/shared/runs"))
    assert "\n" not in str(caught.value)
    whole = recipe(runs_dir="/shared/runs", data={"train": ["/d"]}, model="/m")
    assert absolute(whole) == whole


def test_every_path_becomes_absolute_and_nothing_else_changes(here: Path) -> None:
    (here / "models/base").mkdir(parents=True)
    before = recipe(model="models/warm", warm_start="models/base", runs_dir="runs", seed=7)
    after = absolute(before)
    assert after.runs_dir == str(here / "runs")
    assert after.data.train == [str(here / "d/train.parquet"), "/shared/*.parquet"]
    assert after.data.test == [str(here / "d/t.parquet")]
    assert after.model.path == str(here / "models/warm")
    assert after.warm_start is not None
    assert after.warm_start.model == str(here / "models/base")
    assert after.warm_start.data == [str(here / "w/*.parquet")]

    def blank(tree: dict[str, Any]) -> dict[str, Any]:
        tree["runs_dir"] = tree["model"]["path"] = tree["data"]["train"] = tree["data"]["test"] = None
        tree["warm_start"]["model"] = tree["warm_start"]["data"] = None
        return tree

    assert blank(after.model_dump()) == blank(before.model_dump())


def test_an_address_in_an_object_store_is_kept_as_it_is(here: Path, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ["s3://bucket/a b/**/*.parquet", "gs://bucket/~/x.parquet"]
    before = recipe(
        runs_dir="/runs",
        model="/warm",
        data={"train": train, "test": ["s3://bucket//t"]},
        warm_start="/base",
    )
    before = before.model_copy(update={"warm_start": before.warm_start.model_copy(update={"data": train})})
    for base in (lambda: here, lambda: None):
        monkeypatch.setattr(storage, "root", base)
        assert absolute(before) == before


@pytest.mark.parametrize("values", [{"runs_dir": "s3://bucket/runs"}, {"model": "s3://bucket/model"}])
def test_an_object_store_where_a_folder_has_to_be_is_refused(here: Path, values: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="^s3://bucket/.*: samples alone are read from object stores; write a folder"):
        absolute(recipe(**values))


def test_twice_is_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = absolute(recipe(model="models/warm", warm_start="Qwen/Qwen2.5-VL-3B-Instruct"))
    monkeypatch.chdir("/")
    assert absolute(once) == once


def test_a_models_name_on_a_hub_is_kept_until_a_folder_has_it(here: Path) -> None:
    assert absolute(recipe()).model.path == "Qwen/Qwen2.5-VL-3B-Instruct"
    (here / "Qwen/Qwen2.5-VL-3B-Instruct").mkdir(parents=True)
    assert absolute(recipe()).model.path == str(here / "Qwen/Qwen2.5-VL-3B-Instruct")


@pytest.mark.parametrize("path", ["./models/mine", "../mine", "runs/demo/models/base"])
def test_a_path_that_cannot_be_a_hubs_is_a_path_before_it_is_there(here: Path, path: str) -> None:
    assert absolute(recipe(model=path)).model.path == str(here / path)


def test_the_model_that_a_warm_start_writes_is_a_folder_whatever_its_name(here: Path) -> None:
    after = absolute(recipe(model="me/warm", warm_start="Qwen/Qwen2.5-VL-3B-Instruct"))
    assert after.model.path == str(here / "me/warm")
    assert after.warm_start is not None
    assert after.warm_start.model == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_a_home_is_spelled_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    after = absolute(recipe(model="~/m", data={"train": ["~/d/*.parquet"]}, runs_dir="~/runs"))
    assert (after.model.path, after.data.train, after.runs_dir) == (
        "/home/someone/m",
        ["/home/someone/d/*.parquet"],
        "/home/someone/runs",
    )
