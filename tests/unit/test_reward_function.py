"""A reward function of one's own, in a real process: what it may do, and what becomes of it where it may not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_until

from pathor1.errors import RecipeError
from pathor1.recipe import Recipe
from pathor1.rl.reward_function import RewardFailed, RewardFunction, fields, load
from pathor1.runs import RunFolder
from pathor1.samples import Sample
from pathor1.storage import absolute

# One file for all: the text says what the function does.
SOURCE = """
import os, subprocess, sys, time
from fractions import Fraction
from dataclasses import dataclass

@dataclass
class Kept:
    calls: int = 0

kept = Kept()

def judge(text, answer, sample):
    print("a word on stdout")
    kept.calls += 1
    if text == "raise":
        raise ValueError("no\\nsuch\\tthing")
    if text == "exit":
        sys.exit(3)
    if text == "end":
        os._exit(3)
    if text == "hang":
        while True:
            pass
    if text == "hang with a child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
        time.sleep(600)
    if text == "calls":
        return kept.calls / 100
    if text == "sample":
        return float(sample["options"] == ["x", "y"] and sample["meta"] == {"age": 7} and "images" not in sample)
    if text == "fraction":
        return Fraction(1, 4)
    return {"none": None, "word": "1", "two": 2, "below": -0.1, "nan": float("nan")}.get(text, answer == "A")

constant = 1
"""
SAMPLE = Sample(
    id="a", source="s", task="mcq", question="?", options=("x", "y"), answer="A", images=(b"x",), meta={"age": 7}
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "my_rewards.py"
    path.write_text(SOURCE)
    return path


@contextlib.contextmanager
def function(spec: str, seconds: float = 20.0) -> Iterator[RewardFunction]:
    with RewardFunction(load(spec, seconds)) as started:
        yield started


@pytest.fixture(scope="module")
def judge(file: Path) -> Iterator[RewardFunction]:
    with function(f"{file}:judge") as started:
        started.check(fields(SAMPLE))
        yield started


def test_its_number_is_what_an_answer_is_worth(judge: RewardFunction) -> None:
    assert [judge("t", answer, {}) for answer in "AB"] == [1.0, 0.0]
    assert judge("fraction", "A", {}) == 0.25


def test_it_is_told_of_the_sample_all_but_its_pictures(judge: RewardFunction) -> None:
    assert judge("sample", "A", fields(SAMPLE)) == 1.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise", "raised ValueError: no such thing"),
        ("exit", "raised SystemExit: 3"),
        ("none", "returned None, which is no number"),
        ("word", "returned '1', which is no number"),
        ("two", "returned 2, which is not from 0 to 1"),
        ("below", "returned -0.1, which is not from 0 to 1"),
        ("nan", "returned nan, which is not from 0 to 1"),
    ],
)
def test_what_has_no_value_says_why_and_never_counts_as_wrong(judge: RewardFunction, text: str, why: str) -> None:
    before = judge("calls", "A", {})
    with pytest.raises(RewardFailed, match=f"my_rewards.py:judge {why}$"):
        judge(text, "A", {})
    assert judge("calls", "A", {}) == pytest.approx(before + 0.02), "the same process goes on"


def test_one_that_ends_its_process_is_started_anew(file: Path) -> None:
    with function(f"{file}:judge") as started:
        assert started("calls", "A", {}) == 0.01
        with pytest.raises(RewardFailed, match=r"ended its process \(exit code 3\)"):
            started("end", "A", {})
        assert started("calls", "A", {}) == 0.01


@pytest.mark.parametrize("text", ["hang", "hang with a child"])
def test_one_that_does_not_return_is_stopped_and_started_anew(file: Path, text: str) -> None:
    with function(f"{file}:judge", seconds=1.0) as started:
        assert started("calls", "A", {}) == 0.01
        with pytest.raises(RewardFailed, match=r"has not returned within 1 s \(rl.reward.function_timeout\)"):
            started(text, "A", {})
        assert started("calls", "A", {}) == 0.01


def test_a_long_answer_gets_through(judge: RewardFunction) -> None:
    assert judge("\ud800\n" * 500_000, "A", {"meta": "x" * 1_000_000}) == 1.0


def test_it_ends_with_the_process_that_asks(file: Path) -> None:
    code = f"""
        import threading
        from pathor1.rl.reward_function import RewardFunction, load
        judge = RewardFunction(load("{file}:judge", 600.0))
        judge("t", "A", {{}})
        print(judge._process.pid, flush=True)
        judge("hang", "A", {{}})
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        child = int(asking.stdout.readline())
        os.kill(asking.pid, signal.SIGKILL)

    def is_there() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    wait_until(lambda: not is_there(), 30, "the function's process gone, in the middle of a call")


def test_a_module_is_imported_where_it_runs() -> None:
    # `operator.eq` takes two arguments and is given three.
    with (
        pytest.raises(RecipeError, match=r"^rl.reward.function: operator:eq raised TypeError: .* tried with"),
        function("operator:eq") as started,
    ):
        started.check(fields(SAMPLE))


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("judge", "import nowhere", "raised ModuleNotFoundError: No module named 'nowhere'"),
        ("judge", "def judge(", "raised SyntaxError: "),
        ("other", SOURCE, "raised AttributeError: .* has no other"),
        ("constant", SOURCE, "raised TypeError: constant is not a function"),
        (
            "judge",
            "def judge(text, answer, sample): return 7",
            "returned 7, which is not from 0 to 1; it was tried with '<think>.*<answer>A</answer>' for sample a",
        ),
    ],
)
def test_one_that_cannot_be_used_is_one_line_before_anything_starts(
    tmp_path: Path, name: str, source: str, why: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    with (
        pytest.raises(RecipeError, match=f"^rl.reward.function: .*mine.py:{name} {why}") as caught,
        function(f"{path}:{name}") as started,
    ):
        started.check(fields(SAMPLE))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'^rl.reward.function = "/nowhere.py:f": /nowhere.py: No such file'):
        load("/nowhere.py:f", 1.0)
    (tmp_path / "bad.py").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="it is not UTF-8"):
        load(f"{tmp_path}/bad.py:f", 1.0)


def test_a_run_that_goes_on_keeps_its_function(tmp_path: Path) -> None:
    path, kept = tmp_path / "mine.py", RunFolder(tmp_path).reward_function
    path.write_text("new")
    assert load(f"{path}:f", 1.0, kept=kept).source == "new", "nothing is kept yet"
    kept.write_text("old")
    program = load(f"{path}:f", 1.0, kept=kept)
    assert (program.source, program.module, program.name) == ("old", str(path), "f")
    assert load("a.b:f", 1.0, kept=kept).source is None


def recipe(function: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "a",
            "model": {"path": "m"},
            "data": {"train": ["t"]},
            "rl": {"steps": 1, "reward": {"function": function}},
        }
    )


@pytest.mark.parametrize("bad", ["score", "a.py", "a b:c", "a:b:c.py", ":f", "a.py:", "a.py:1", "a-b:f"])
def test_what_names_no_function_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match='neither "module:name" nor "path/to/file.py:name"'):
        recipe(bad)


def test_a_file_is_found_from_where_recipes_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHOR1_STORAGE", str(tmp_path))
    assert absolute(recipe("lab/mine.py:f")).rl.reward.function == f"{tmp_path}/lab/mine.py:f"
    assert absolute(recipe("/lab/mine.py:f")).rl.reward.function == "/lab/mine.py:f"
    assert absolute(recipe("lab.mine:f")).rl.reward.function == "lab.mine:f"
