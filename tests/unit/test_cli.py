"""The command line: what is printed and which exit code, for the right and the wrong."""

from __future__ import annotations

import argparse
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pathor1 import cli
from pathor1.commands import Command
from pathor1.commands.training import recipe_of_run
from pathor1.errors import DataError, RecipeError
from pathor1.samples import read

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "ray_jobs" / "recipes" / "demo_grpo.toml")


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pathor1.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd, env=environment)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command line ends in."""
    code: object
    try:
        code = cli.main(arguments)
    except SystemExit as end:  # argparse leaves this way
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("pathor1: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("pathor1: ").rstrip("\n")


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as end:
            cli.main([*command.name.split(), "--help"])
        assert end.value.code == 0
        page = capsys.readouterr().out
        assert f"example:\n  pathor1 {command.name}" in page
        assert command.help in " ".join(page.split())


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_example_parses(command: Command) -> None:
    for line in command.example.splitlines():
        arguments = line.split()
        assert arguments[0] == "pathor1"
        assert cli.build_parser().parse_args(arguments[1:]).run is command.run


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    page = capsys.readouterr().out
    listed = {line.split()[0] for line in page.splitlines() if re.match(r"    \w", line)}
    assert listed >= {command.name.split()[0] for command in cli.COMMANDS}


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys) == "the following arguments are required: COMMAND; see `pathor1 --help`"


def test_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "rl", DEMO, "--wat") == "unrecognized arguments: --wat; see `pathor1 --help`"


def test_a_recipe_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "no.toml: no such recipe; ray_jobs/recipes/ holds some to start from"
    assert mistake(capsys, "rl", "no.toml") == expected
    assert mistake(capsys, "sft", "no.toml") == expected


def test_an_override_that_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, "rl", DEMO, "--set", "rl.groupsize=8", "--dry-run")
    assert line == "--set: unknown key rl.groupsize; did you mean rl.group_size?"


def test_sft_without_a_warm_start(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "ray_jobs" / "recipes" / "patho_r1_7b_grpo.toml")
    line = mistake(capsys, "sft", recipe)
    assert line == f"{recipe}: has no [sft] and no [warm_start] table; docs/recipes.md lists both"


def test_a_recipe_or_a_run_but_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "rl").startswith("one of the arguments RECIPE --resume is required")
    assert "not allowed with" in mistake(capsys, "rl", DEMO, "--resume", "runs/demo")


def test_a_comparison_with_what_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(Path(DEMO).read_text(encoding="utf-8"))
    line = mistake(capsys, "compare", str(run), str(tmp_path / "gone"))
    assert line.startswith(f"{tmp_path / 'gone'}: not the folder of a run, it has no recipe.toml")
    assert mistake(capsys, "compare", str(run)) == "1 runs to compare; give 2 to 8"
    assert [path.name for path in run.iterdir()] == ["recipe.toml"]


def test_a_demonstration_by_an_unknown_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    assert "argument --algorithm: invalid choice: 'ppo'" in mistake(capsys, "demo", "--algorithm", "ppo")


def test_a_cluster_where_nobody_listens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    for arguments in (["status"], ["status", "demo"], ["logs", "demo"], ["stop", "demo"], ["submit", DEMO]):
        assert mistake(capsys, *arguments).startswith("http://127.0.0.1:1: nobody listens there, or no Ray head; ")


def test_what_cannot_be_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "submit", "no.toml").startswith("no.toml: no such recipe")
    line = mistake(capsys, "submit", DEMO, "--stage", "dance")
    assert line.startswith("--stage dance: ray_jobs has no such module; it has ")
    benchmark = str(ROOT / "ray_jobs/recipes/benchmarks/yes_no.toml")
    line = mistake(capsys, "submit", benchmark, "--stage", "rl")
    assert line == f"{benchmark}: is a benchmark's recipe, whose only stage is evaluate"
    recipe = str(ROOT / "ray_jobs/recipes/patho_r1_7b_grpo.toml")
    assert mistake(capsys, "submit", recipe, "--stage", "sft").startswith(f"{recipe}: has no [warm_start] table")


def test_the_status_of_a_run_folder_needs_no_cluster(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    (tmp_path / "recipe.toml").write_text(Path(DEMO).read_text(encoding="utf-8"))
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    assert cli.main(["status", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert re.search(r"(?m)^  step +3/45, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", page)
    assert re.search(r"(?m)^  checkpoint +none$", page)


def test_resume_of_what_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = mistake(capsys, "rl", "--resume", str(tmp_path / "gone"))
    assert line.startswith(f"{tmp_path / 'gone'}: not the folder of a run, it has no recipe.toml")


def test_resume_takes_the_run_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "moved" / "my-run"
    folder.mkdir(parents=True)
    text = Path(DEMO).read_text(encoding="utf-8")
    (folder / "recipe.toml").write_text(text.replace('name = "demo"', 'name = "old"\nruns_dir = "/old/place"'))
    arguments = argparse.Namespace(resume=str(folder), overrides=["rl.steps=80"])
    recipe = recipe_of_run(arguments)
    assert (recipe.runs_dir, recipe.name, recipe.rl.steps) == (str(tmp_path / "moved"), "my-run", 80)


@pytest.mark.parametrize("key", ["seed", "data.train", "model.path", "rl.learning_rate"])
def test_what_a_run_keeps_cannot_be_set_at_its_resume(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str
) -> None:
    (tmp_path / "recipe.toml").write_text(Path(DEMO).read_text(encoding="utf-8"))
    line = mistake(capsys, "rl", "--resume", str(tmp_path), "--set", f"{key}=1")
    assert line.startswith(f"--set {key}: a run keeps its own")


def test_a_run_folder_that_was_renamed_to_no_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "Run_old"
    folder.mkdir()
    (folder / "recipe.toml").write_text(Path(DEMO).read_text(encoding="utf-8"))
    line = mistake(capsys, "rl", "--resume", str(folder))
    assert 'name = "Run_old": must be 1 to 47 of a-z, 0-9 and hyphens' in line


def test_a_finished_run_is_not_begun_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from pathor1 import checkpoints
    from pathor1.data.rendered import render
    from pathor1.data.sources import sources
    from pathor1.data.stream import Reading, SampleStream
    from pathor1.recipe import Data

    render(tmp_path, seed=1, counts={"train": 2})
    (tmp_path / "model").mkdir()
    for name, text in (("config", '{"model_type": "qwen2_5_vl", "vision_config": {}}'), ("tokenizer_config", "{}")):
        (tmp_path / f"model/{name}.json").write_text(text)
    (tmp_path / "model/preprocessor_config.json").write_text("{}")
    text = Path(DEMO).read_text(encoding="utf-8")
    text = re.sub(r"(?m)^path = .*", f"path = '{tmp_path / 'model'}'", text)
    text = re.sub(r"(?m)^train = .*", f"train = ['{tmp_path / 'train.parquet'}']", text)
    text = re.sub(r"(?ms)^\[warm_start\].*", "", text)
    (tmp_path / "done").mkdir()
    (tmp_path / "done/recipe.toml").write_text(text)
    steps = int(re.findall(r"(?m)^steps = (\d+)", text)[0])
    folder = checkpoints.folder(tmp_path / "done/checkpoints", steps)
    folder.mkdir(parents=True)
    data = Data(train=[str(tmp_path / "train.parquet")])
    state = SampleStream(sources(data), seed=0, reading=Reading.of(data)).state()
    checkpoints.seal(folder, checkpoints.Manifest(step=steps, stream=state, ranks=1, files={}))
    line = mistake(capsys, "rl", "--resume", str(tmp_path / "done"))
    assert line == f"{tmp_path / 'done'}: has done its {steps} steps; for more, --set rl.steps=NUMBER"
    render(tmp_path, seed=1, counts={"train": 3})
    line = mistake(capsys, "rl", "--resume", str(tmp_path / "done"))
    assert line.startswith("the training data has changed since the checkpoint: 1 files of 2 rows have become 1 of 3; ")
    render(tmp_path, seed=2, counts={"train": 2})
    line = mistake(capsys, "rl", "--resume", str(tmp_path / "done"))
    assert "its 1 files have as many rows as before, and other ones" in line


@pytest.mark.parametrize("counts", ["train", "train=", "=3", "train=few", "train=-1"])
def test_counts_that_are_none(capsys: pytest.CaptureFixture[str], tmp_path: Path, counts: str) -> None:
    line = mistake(capsys, "data", "render", "--out", str(tmp_path), "--counts", counts)
    assert line.startswith(f"argument --counts: {counts!r} is not SPLIT=NUMBER, such as train=4000")


def test_data_render_and_ihc(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for kind in ("render", "ihc"):
        out = tmp_path / kind
        assert cli.main(["data", kind, "--out", str(out), "--counts", "train=3", "test=2", "--seed", "5"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed == [f"{out / 'train.parquet'}: 3 questions", f"{out / 'test.parquet'}: 2 questions"]
        assert [len(list(read(out / f"{split}.parquet"))) for split in ("train", "test")] == [3, 2]


def test_data_render_takes_its_options(tmp_path: Path) -> None:
    line = ["data", "render", "--out", str(tmp_path), "--counts", "test=20", "--options", "2", "3", "--size", "28"]
    assert cli.main(line) == 0
    assert {len(sample.options or ()) for sample in read(tmp_path / "test.parquet")} == {2, 3}


def test_evaluate_takes_named_models(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", DEMO, "--model", "base=m/base", "--model", "Qwen/Qwen2.5-VL-3B-Instruct"]
    parsed = cli.build_parser().parse_args(line)
    assert parsed.model == [("base", "m/base"), ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct")]
    assert "'=x' is not NAME=PATH" in mistake(capsys, "evaluate", DEMO, "--model", "=x")


def test_evaluate_without_anything_to_evaluate_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "evaluate", DEMO, "--set", "data.test=[]").startswith("data.test names no file")
    line = mistake(capsys, "evaluate", DEMO, "--set", "data.test=['gone.parquet']")
    assert line.startswith(f"{ROOT / 'gone.parquet'}: no such file")


def test_score_prints_to_stdout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"text": "<think>x</think><answer>B</answer>", "answer": "B"}\n')
    assert cli.main(["score", str(path), "--json"]) == 0
    assert '"accuracy": 1.0' in capsys.readouterr().out


def test_explain_user_errors_however_deep() -> None:
    assert cli.explain(DataError("x.parquet: no")) == "x.parquet: no"
    assert cli.explain(RecipeError("two\nlines")) == "two lines"
    outer = RuntimeError("a worker failed")
    outer.__cause__ = DataError("x.parquet: no")
    assert cli.explain(outer) == "x.parquet: no"


def test_explain_errors_that_ray_hands_on() -> None:
    class RayTaskError(DataError):
        """As Ray makes them: of the class of the cause, with a traceback for a text."""

        def __init__(self, cause: Exception) -> None:
            super().__init__("Traceback (most recent call last): ...")
            self.cause = cause

    assert cli.explain(RayTaskError(DataError("x.parquet: no"))) == "x.parquet: no"


def test_explain_leaves_our_own_mistakes_alone() -> None:
    assert cli.explain(ValueError("x")) is None
    assert cli.explain(OSError(errno.ECONNREFUSED, "refused")) is None
    mistake_in_a_handler = KeyError("x")
    mistake_in_a_handler.__context__ = DataError("x.parquet: no")  # not what it was raised from
    assert cli.explain(mistake_in_a_handler) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_explain_a_full_disk(number: int) -> None:
    line = cli.explain(OSError(number, os.strerror(number), "/data/step-1"))
    assert line is not None
    assert line.startswith("disk full: /data/step-1; free some space")
    line = cli.explain(OSError(number, os.strerror(number)))
    assert line is not None
    assert line.startswith("disk full: while writing; free some space")


@pytest.mark.parametrize(
    "words",
    [
        "I/O error: No space left on device (os error 28)",  # safetensors
        "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/3: file write failed",
    ],
)
def test_explain_a_full_disk_in_the_words_of_others(words: str) -> None:
    outer = RuntimeError("a rank failed")
    outer.__cause__ = RuntimeError(words)
    line = cli.explain(outer)
    assert line is not None
    assert line.startswith("disk full: while writing; free some space")


def test_explain_a_folder_that_may_not_be_written() -> None:
    line = cli.explain(PermissionError(errno.EACCES, "Permission denied", "/root/x"))
    assert line == "/root/x: Permission denied"


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    done = run("rl", "no.toml", cwd=tmp_path)
    expected = "pathor1: no.toml: no such recipe; ray_jobs/recipes/ holds some to start from\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    done = run("wat", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    done = run("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_our_own_mistakes_and_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: BaseException) -> Command:
        def raises(arguments: argparse.Namespace) -> int:
            raise error

        return Command(name="fail", help="Fail", example="pathor1 fail", add=lambda parser: None, run=raises)

    monkeypatch.setattr(cli, "COMMANDS", (fail(KeyboardInterrupt()),))
    assert cli.main(["fail"]) == 130
    monkeypatch.setattr(cli, "COMMANDS", (fail(ZeroDivisionError("ours")),))
    with pytest.raises(ZeroDivisionError):  # Python prints the traceback and exits with 1
        cli.main(["fail"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's full disk")
def test_a_full_disk_under_stdout_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"text": "no tags", "answer": "B"}\n')
    command = f"{sys.executable} -m pathor1.cli score {path} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("pathor1: disk full: while writing; free some space")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"text": "no tags", "answer": "B"}\n' * 20_000)
    command = f"{sys.executable} -m pathor1.cli score {path} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
