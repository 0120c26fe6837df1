"""How every stage of curation runs: what is done is not done again, and nothing of two settings is mixed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pathor1.curation.made import Made, finished
from pathor1.curation.recipe import Books, CurationRecipe
from pathor1.curation.running import run_stage
from pathor1.curation.stage import Card, Chunk, Dropped, Inputs, Row, Stage, WholeStage, Work, digest
from pathor1.errors import RunError

SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("value", pa.int64())])


class Doubled(Stage):
    """Numbers of a JSON file (chunk -> numbers), doubled; what it has worked on is in a log beside it."""

    name = "doubled"
    version = 1
    inputs = ()
    schema = SCHEMA

    def __init__(self, recipe: CurationRecipe, file: Path, *, factor: int = 2) -> None:
        super().__init__(recipe)
        self.file, self.factor = file, factor

    def settings(self) -> Mapping[str, Any]:
        return {"factor": self.factor}

    def chunks(self, inputs: Inputs) -> Iterator[Chunk | Dropped]:
        for key, numbers in json.loads(self.file.read_text()).items():
            if numbers is None:
                yield Dropped(where=key, reason="locked", detail="it has a lock")
            else:
                yield Chunk(key=key, made_of=digest(numbers), items=len(numbers), payload=numbers)

    def singly(self, chunk: Chunk) -> list[Chunk]:
        return [
            replace(chunk, key=f"{chunk.key}/{place}", items=1, payload=[number])
            for place, number in enumerate(chunk.payload)
        ]

    def open(self) -> Work:
        return self._double

    def _double(self, chunk: Chunk) -> Iterable[Row | Dropped]:
        with self.file.with_suffix(".log").open("a") as log:
            log.write(f"{chunk.key}\n")
        for place, number in enumerate(chunk.payload):
            if number == "die":
                os._exit(1)
            if number == "meet":
                self._meet(chunk.key)
            if number == "fail" and not self.file.with_suffix(".mended").exists():
                raise ValueError("this one fails")
            if number == "odd":
                yield Dropped(where=f"{chunk.key}/{place}", reason="odd", detail="an odd one")
            else:
                yield {"id": f"{chunk.key}/{place}", "value": self.factor * len(str(number))}

    def _meet(self, key: str) -> None:
        """Waits until a second chunk is being worked on."""
        self.file.with_suffix(f".{key}").touch()
        deadline = time.monotonic() + 240
        while len(list(self.file.parent.glob(f"{self.file.stem}.?"))) < 2:
            assert time.monotonic() < deadline, "nobody else works"
            time.sleep(0.05)

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        for row in made.read():
            yield Card(title=row["id"], facts=[("value", f"<b>{row['value']}</b>")])


class Summed(WholeStage):
    """The sum of all of them."""

    name = "summed"
    version = 1
    inputs = ("doubled",)
    schema = SCHEMA

    def settings(self) -> Mapping[str, Any]:
        return {}

    def make(self, inputs: Inputs, work: Path) -> Iterator[Row | Dropped]:
        with (work / "log").open("a") as log:
            log.write("made\n")
        yield {"id": "sum", "value": sum(row["value"] for row in inputs["doubled"].read(["value"]))}

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        yield from ()


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    from pathor1.ray_cluster import ray_cluster

    with ray_cluster({"PYTHONPATH": str(Path(__file__).parent)}, log_to_driver=False):  # the stages are of this file
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> CurationRecipe:
    return CurationRecipe(name="numbers", runs_dir=str(tmp_path), workers=1, books=Books(pdfs=["none"]))


def worked_on(file: Path) -> list[str]:
    log = file.with_suffix(".log")
    found = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def values(made: Made) -> dict[str, int]:
    return {row["id"]: row["value"] for row in made.read()}


def test_rows_and_what_was_dropped_are_counted_and_a_second_start_does_nothing(
    recipe: CurationRecipe, tmp_path: Path
) -> None:
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps({"a": [1, 22], "b": ["odd", 333], "c": None}))
    made = run_stage(Doubled(recipe, file), recipe)
    assert values(made) == {"a/0": 2, "a/1": 4, "b/1": 6}
    assert (made.items, made.rows, made.dropped) == (5, 3, {"locked": 1, "odd": 1})
    lines = [json.loads(line) for line in (made.folder / "dropped.jsonl").read_text().splitlines()]
    assert lines == [
        {"where": "c", "reason": "locked", "detail": "it has a lock"},
        {"where": "b/0", "reason": "odd", "detail": "an odd one"},
    ]
    page = (made.folder / "review.html").read_text()
    assert "&lt;b&gt;2&lt;/b&gt;" in page
    assert "<b>2</b>" not in page
    assert sorted(worked_on(file)) == ["a", "b"]
    again = run_stage(Doubled(recipe, file), recipe)
    assert again == made
    assert worked_on(file) == []


def test_chunks_are_worked_on_side_by_side(recipe: CurationRecipe, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps({"a": ["meet"], "b": ["meet"]}))
    two = recipe.model_copy(update={"workers": 2})
    assert values(run_stage(Doubled(two, file), two)) == {"a/0": 8, "b/0": 8}


def test_only_chunks_that_are_new_or_changed_are_worked_on(recipe: CurationRecipe, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps({"a": [1], "b": [1], "c": [1]}))
    first = run_stage(Doubled(recipe, file), recipe)
    worked_on(file)
    file.write_text(json.dumps({"a": [1], "b": [4444], "d": [1]}))
    made = run_stage(Doubled(recipe, file), recipe)
    assert sorted(worked_on(file)) == ["b", "d"]
    assert values(made) == {"a/0": 2, "b/0": 8, "d/0": 2}
    assert made.digest != first.digest
    assert sorted(path.name for path in (made.folder / "parts").iterdir()) == [
        "a.json", "a.parquet", "b.json", "b.parquet", "d.json", "d.parquet",
    ]  # fmt: skip


def test_what_was_done_before_an_error_is_kept(recipe: CurationRecipe, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps({"a": [1], "b": ["fail"], "c": [1]}))
    with pytest.raises(Exception, match="this one fails"):
        run_stage(Doubled(recipe, file), recipe)
    with pytest.raises(RunError, match="the stage doubled is not finished"):
        finished(recipe.folder, "doubled")
    assert "a" in worked_on(file)
    file.with_suffix(".mended").touch()
    made = run_stage(Doubled(recipe, file), recipe)
    assert values(made) == {"a/0": 2, "b/0": 8, "c/0": 2}
    assert "a" not in worked_on(file)


def test_an_item_that_takes_down_its_process_is_dropped_and_the_others_go_on(
    recipe: CurationRecipe, tmp_path: Path
) -> None:
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps({"a": [1], "b": [22, "die", 333], "c": [1]}))
    made = run_stage(Doubled(recipe, file), recipe)
    assert values(made) == {"a/0": 2, "b/0/0": 4, "b/2/0": 6, "c/0": 2}
    assert made.dropped == {"crash": 1}
    (line,) = (made.folder / "dropped.jsonl").read_text().splitlines()
    assert json.loads(line)["where"] == "b/1"
    worked = worked_on(file)
    assert [worked.count(key) for key in ("b", "b/0", "b/1", "b/2")] == [3, 1, 1, 1]


def test_other_settings_are_refused_and_made_anew_on_request(recipe: CurationRecipe, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps({"a": [1]}))
    run_stage(Doubled(recipe, file), recipe)
    with pytest.raises(RunError, match="was made with factor = 2, now 5; --redo makes the stage anew"):
        run_stage(Doubled(recipe, file, factor=5), recipe)
    assert values(finished(recipe.folder, "doubled")) == {"a/0": 2}
    assert values(run_stage(Doubled(recipe, file, factor=5), recipe, redo=True)) == {"a/0": 5}


def test_a_stage_made_of_what_has_changed_is_not_gone_on_from(recipe: CurationRecipe, tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    with pytest.raises(
        RunError, match="the stage doubled is not finished; `pathor1 curate doubled RECIPE` comes first"
    ):
        run_stage(Summed(recipe), recipe)
    file.write_text(json.dumps({"a": [1, 22]}))
    run_stage(Doubled(recipe, file), recipe)
    made = run_stage(Summed(recipe), recipe)
    assert values(made) == {"sum": 6}
    assert (made.items, made.rows) == (2, 1)
    run_stage(Summed(recipe), recipe)
    assert (made.folder / "work" / "log").read_text() == "made\n"
    file.write_text(json.dumps({"a": [1, 22, 333]}))
    run_stage(Doubled(recipe, file), recipe)
    with pytest.raises(RunError, match="was made of doubled that have been made anew since"):
        finished(recipe.folder, "summed")
    assert values(run_stage(Summed(recipe), recipe)) == {"sum": 12}


def test_a_folder_of_something_else_is_left_alone(recipe: CurationRecipe, tmp_path: Path) -> None:
    (recipe.folder / "doubled").mkdir(parents=True)
    (recipe.folder / "doubled" / "letter.txt").touch()
    with pytest.raises(RunError, match="is not empty, and holds no stage of curation"):
        run_stage(Doubled(recipe, tmp_path / "numbers.json"), recipe)
