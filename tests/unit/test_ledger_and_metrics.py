"""What is kept of a step: the ledger's rows, and the numbers made of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from processes import wait_until

from pathor1.recipe_rl import BestBy
from pathor1.rl import held_out, ledger
from pathor1.rl.groups import Dropped, Group, Selection
from pathor1.rl.ledger import SCHEMA, LedgerRow
from pathor1.rl.metrics import NAMES, SECONDS, of_batch, of_groups, of_phases, of_rollouts, of_verl
from pathor1.tracking.log import MetricsLog
from pathor1.tracking.meanings import OF_A_RUN, OF_A_STAGE, OF_A_STEP, entry, gauge

ROW = LedgerRow(
    step=3,
    group="17",
    rollout=0,
    id="rendered/0/train/17",
    source="rendered",
    task="mcq",
    text="<think>größer \x00</think>",
    answer="B",
    parsed=None,
    reason="no <answer> block",
    format=0.0,
    accuracy=0.0,
    length=-0.25,
    format_weight=1.0,
    accuracy_weight=1.0,
    length_weight=1.0,
    total=-0.25,
    advantage=None,
    response_tokens=9,
    truncated=True,
    stop_reason="length",
    asked=3,
    policy_version=2,
)


def row(group: str, *, accuracy: float, **values: Any) -> LedgerRow:
    rest: dict[str, Any] = {"parsed": "B", "truncated": False, "format": 1.0, "length": 0.0, **values}
    total = rest.pop("total", accuracy + rest["format"])
    return replace(ROW, group=group, accuracy=accuracy, total=total, **rest)


THOUGHT = "<think>round glands that are crowded back to back, without stroma</think><answer>B</answer>"
STEP = [
    row("a", accuracy=1.0, text=THOUGHT),
    row("a", accuracy=0.0, text=THOUGHT),
    row("b", accuracy=1.0, text="<think>B</think><answer>B</answer>"),
    row("b", accuracy=1.0, format=0.0, length=-1.0, total=0.0),
    row("c", accuracy=0.0, truncated=True, parsed=None, text=f"<think>{'the same words again ' * 11}"),
    row("c", accuracy=0.0, truncated=True, parsed=None),
    row("c", accuracy=0.0, length=-0.6, total=0.4, parsed="C", text=THOUGHT),
    row("d", accuracy=0.0, format=0.0, parsed=None, answer="A"),
]
BATCH = of_batch(
    [
        {"prompt_len": 10, "response_len": 3, "seq_len": 13},
        {"prompt_len": 30, "response_len": 9, "seq_len": 39},
        {"prompt_len": 1, "response_len": 1, "seq_len": 2, "is_padding": True},
    ],
    [replace(ROW, advantage=-1.5), replace(ROW, advantage=1.5)],
    seconds=4.0,
    accelerators=2,
)


def test_the_numbers_of_a_step() -> None:
    # 44 words are 41 four-grams of which 4 are different, the first <think> among them a fifth.
    repeated = 1 - 5 / 41
    assert of_rollouts(STEP, min_think_words=8) == pytest.approx(
        {
            "reward/mean": (2 + 1 + 2 + 0 + 1 + 1 + 0.4 + 0) / 8,
            "reward/format": 6 / 8,
            "reward/accuracy": 3 / 8,
            "reward/length": -1.6 / 8,
            "rollout/truncated": 2 / 8,
            "rollout/unparsed": 3 / 8,
            "rollout/without_reasoning": 3 / 8,
            "rollout/repetition": repeated / 8,
            "tokens/generated": 72,
            "letters/A_said": 0,
            "letters/A_right": 1 / 8,
            "letters/B_said": 4 / 8,
            "letters/B_right": 7 / 8,
            "letters/C_said": 1 / 8,
            "letters/C_right": 0,
        }
    )
    assert of_rollouts(STEP[::-1], min_think_words=8) == pytest.approx(of_rollouts(STEP, min_think_words=8))
    assert of_rollouts([], min_think_words=8) == {}


def test_what_may_say_which_checkpoint_is_best_is_a_metric_of_the_rollouts_or_of_an_evaluation() -> None:
    known = of_rollouts(STEP, min_think_words=8).keys() | held_out.metrics(STEP).keys()
    assert set(get_args(BestBy)) <= known


def group(number: int, accuracies: tuple[float, ...], *, step: int = 5, last: int | None = None) -> Group:
    tokens = [
        {
            "response_tokens": 10 * (number + 1),
            "policy_version": step - 1,
            "last_policy_version": last if index else None,
        }
        for index in range(len(accuracies))
    ]
    return Group(number=number, sample=f"s{number}", step=step, accuracies=accuracies, rows=tokens)


def test_the_numbers_of_a_steps_groups() -> None:
    carried = group(0, (1.0, 0.0), step=3, last=3)
    dropped = [
        Dropped(group=group(2, (1.0, 1.0)), reason="all_correct"),
        Dropped(group=group(3, (0.0, 0.0)), reason="all_wrong"),
        Dropped(group=group(4, (0.0, 0.0)), reason="all_wrong"),
        Dropped(group=group(5, (1.0, 0.0), step=2), reason="stale"),
        Dropped(group=Group(number=6, sample="s6", step=5, accuracies=(), error="boom"), reason="failed"),
    ]
    selection = Selection(
        groups=(carried, group(1, (0.0, 1.0))), dropped=tuple(dropped), asked=6, carried=(group(7, (0.0, 1.0)),)
    )
    assert of_groups(selection, step=5) == {
        "groups/asked": 6,
        "groups/trained": 2,
        "groups/informative": 3,
        "groups/all_right": 1,
        "groups/all_wrong": 2,
        "carried/from_before": 1,
        "carried/age_max": 2,
        "carried/to_next": 1,
        "tokens/trained": 2 * 10 + 2 * 20,
        "staleness/max": 2,
        "staleness/mean": 1,
        "staleness/interrupted": 1 / 4,
        "steps/skipped": 0,
        "dropped/all_correct": 1,
        "dropped/all_wrong": 2,
        "dropped/outside_band": 0,
        "dropped/failed": 1,
        "dropped/stale": 1,
        "dropped/budget": 0,
    }
    nothing = of_groups(Selection(groups=(), dropped=(), asked=8, carried=()), step=5)
    assert (nothing["steps/skipped"], nothing["groups/asked"], nothing["staleness/max"]) == (1, 8, 0)


def test_verls_numbers_go_by_our_names_and_those_we_do_not_keep_are_left_out() -> None:
    assert of_verl({"actor/lr": 1, "perf/mfu/actor": 0.3}) == {"actor/next_learning_rate": 1.0}
    assert of_phases({"gen": 2.5, "testing": 1.0}) == {"seconds/generate": 2.5}
    ours = [*NAMES.values(), *SECONDS.values(), *of_rollouts(STEP, min_think_words=8), *BATCH]
    assert len(set(ours)) == len(ours)


def test_a_batch_is_as_long_as_its_own_rollouts_and_has_the_tokens_of_what_fills_it() -> None:
    assert pytest.approx(BATCH) == {
        "advantage/max": 1.5,
        "prompt_tokens/mean": 20.0,
        "prompt_tokens/max": 30.0,
        "response_tokens/mean": 6.0,
        "response_tokens/max": 9.0,
        "tokens": 54.0,
        "tokens_per_second_per_accelerator": 6.75,
    }
    assert of_batch([], [], seconds=4.0, accelerators=2) == {}


def test_every_number_of_a_step_has_a_meaning_and_a_gauge_of_its_own() -> None:
    nothing = of_groups(Selection(groups=(), dropped=(), asked=0, carried=()), step=1)
    made = {*NAMES.values(), *SECONDS.values(), *BATCH, *of_rollouts(STEP, min_think_words=8), *nothing, "step"}
    made |= {"data/left_out", "data/left_out_share", "data/passed_over", "data/quilt/epoch", "data/a/b/position"}
    made |= {"run/restarts", "checkpoints/copies_failed"}
    made |= {*held_out.metrics(STEP), "evaluation/since_best", "seconds/evaluation"}
    assert {entry(name) for name in made} == OF_A_STEP.keys()
    assert gauge("letters/A_said") == ("pathor1_letters_a_said", {})
    assert gauge("data/left_out") == ("pathor1_data_left_out", {})
    assert gauge("data/a/b/position") == ("pathor1_data_position", {"source": "a/b"})
    assert len({gauge(name)[0] for name in OF_A_STEP}) == len(OF_A_STEP)
    meanings = [*OF_A_STEP.values(), *OF_A_STAGE.values(), *OF_A_RUN.values()]
    assert all(text.isascii() and unit.isascii() for unit, text in meanings), "Ray takes no other help"


def test_every_number_of_a_supervised_step_has_a_meaning_and_a_gauge_of_its_own() -> None:
    assert entry("loss/quilt/a") == "loss/SOURCE"
    assert gauge("loss/quilt/a") == ("pathor1_loss_by_source", {"source": "quilt/a"})
    assert gauge("loss") == ("pathor1_loss", {})
    assert len({gauge(name)[0] for name in OF_A_STAGE}) == len(OF_A_STAGE)


def test_a_step_of_the_ledger_comes_back(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, rollout=1, parsed="B", advantage=-0.5, truncated=False)]
    path = ledger.write(tmp_path, 3, rows)
    assert path == ledger.path(tmp_path, 3) == tmp_path / "step-000003.parquet"
    assert pq.read_table(path).to_pylist() == [asdict(each) for each in rows]
    assert SCHEMA.names == [field.name for field in fields(LedgerRow)]


def test_a_step_that_is_run_again_replaces_its_rows_whole(tmp_path: Path) -> None:
    ledger.write(tmp_path, 3, [ROW] * 5)
    ledger.write(tmp_path, 4, [ROW])
    ledger.write(tmp_path, 3, [replace(ROW, text="again")])
    assert pq.read_table(ledger.path(tmp_path, 3)).column("text").to_pylist() == ["again"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003.parquet", "step-000004.parquet"]


def test_rows_that_cannot_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    ledger.write(tmp_path, 3, [ROW])
    for broken in (replace(ROW, reason=None), replace(ROW, rollout="x")):  # type: ignore[arg-type]  # which is the point
        with pytest.raises((ValueError, TypeError)):
            ledger.write(tmp_path, 3, [broken])
    assert pq.read_table(ledger.path(tmp_path, 3)).to_pylist() == [asdict(ROW)]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_writer_raises_what_went_wrong_with_the_step_before(tmp_path: Path) -> None:
    with ledger.Writer(tmp_path) as writer:
        writer.write(1, [ROW])
        writer.write(2, [ROW, ROW])
        writer.flush()
        assert [pq.read_table(ledger.path(tmp_path, step)).num_rows for step in (1, 2)] == [1, 2]
        ledger.path(tmp_path, 3).mkdir()  # where a file is to go
        writer.write(3, [ROW])
        with pytest.raises(OSError, match="step-000003"):
            writer.write(4, [ROW])
        writer.write(5, [ROW])
    assert pq.read_table(ledger.path(tmp_path, 5)).num_rows == 1
    assert not ledger.path(tmp_path, 4).exists()


def log(tmp_path: Path, *, keep_up_to: int) -> MetricsLog:
    return MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", run="demo", keep_up_to=keep_up_to)


def lines(tmp_path: Path) -> list[dict[str, float]]:
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_a_step_on_disk_at_once(tmp_path: Path) -> None:
    with log(tmp_path, keep_up_to=0) as metrics:
        metrics.write(1, {"b": 0.5, "a": 2})
        assert lines(tmp_path) == [{"step": 1, "a": 2.0, "b": 0.5}]
        metrics.write(2, {"a": 3.0})
        assert lines(tmp_path) == [{"step": 1, "a": 2.0, "b": 0.5}, {"step": 2, "a": 3.0}]
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("value", [7.5e-8, 1.0 / 3.0, 123_456_789.5, -2.5e-13, 0.0, 1e30])
def test_small_and_large_numbers_keep_their_digits(tmp_path: Path, value: float) -> None:
    with log(tmp_path, keep_up_to=0) as metrics:
        metrics.write(1, {"learning_rate": value})
    assert lines(tmp_path)[0]["learning_rate"] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_as_json_has_no_nan(tmp_path: Path, value: float) -> None:
    with log(tmp_path, keep_up_to=0) as metrics:
        metrics.write(1, {"a": 1.0, "b": value})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 1.0, "b": null}\n'


def test_a_resumed_run_drops_the_steps_that_it_runs_again(tmp_path: Path) -> None:
    with log(tmp_path, keep_up_to=0) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"a": float(step)})
    with log(tmp_path, keep_up_to=3) as metrics:
        assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
        metrics.write(4, {"a": 40.0})
    assert [line["a"] for line in lines(tmp_path)] == [1.0, 2.0, 3.0, 40.0]
    with log(tmp_path, keep_up_to=0):
        assert lines(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_what_a_step_has_later_is_added_to_its_line(tmp_path: Path) -> None:
    with log(tmp_path, keep_up_to=0) as metrics:
        metrics.write(1, {"a": 1.0})
        metrics.write(2, {"a": 2.0, "bad": math.nan})
    with log(tmp_path, keep_up_to=2) as metrics:
        metrics.add(2, {"b": 0.25})
        assert lines(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0, "b": 0.25, "bad": None}]
        metrics.write(3, {"a": 3.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    (tmp_path / "metrics.jsonl").unlink()  # a run that goes on from a store elsewhere
    with log(tmp_path, keep_up_to=3) as metrics:
        metrics.add(3, {"b": 0.5})
        assert lines(tmp_path) == [{"step": 3, "b": 0.5}]


@pytest.mark.parametrize("half", ['{"step": 4, "a', '{"step": 4, "a": 4.0}', "{", "\x00\x00"])
def test_half_a_line_of_a_run_that_was_killed_is_dropped(tmp_path: Path, half: str) -> None:
    whole = "".join(f'{{"step": {step}, "a": {step}.0}}\n' for step in (1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(whole + half)
    with log(tmp_path, keep_up_to=4) as metrics:
        metrics.write(4, {"a": 40.0})
    assert [line["a"] for line in lines(tmp_path)] == [1.0, 2.0, 3.0, 40.0]


def test_the_first_line_may_be_the_half_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"st')
    with log(tmp_path, keep_up_to=0):
        assert lines(tmp_path) == []


def test_the_ledger_of_steps_that_are_run_again_is_removed(tmp_path: Path) -> None:
    for step in (2, 3, 1000000):
        (tmp_path / f"step-{step:06d}.parquet").touch()
    ledger.remove_after(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002.parquet"]


def told_to_wandb(data: bytes) -> bytes:
    """What a W&B file holds, without the headers of its records (LevelDB's log format): one may cut a text in two."""
    place, found = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        found += data[place + 7 : place + 7 + length]
        place += 7 + length
    return found


def test_a_tracker_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases itself, which writes beside the run what it would send."""
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    paths = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with MetricsLog(*paths, run="demo", keep_up_to=0, trackers=["wandb"], recipe={"name": "demo"}) as kept:
        kept.write(1, {"reward/mean": 0.25})
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")

    def has_all() -> bool:
        data = told_to_wandb(written.read_bytes())
        return all(text in data for text in (b"pathor1", b"demo", b"reward/mean", b"0.25"))

    wait_until(has_all, 60, "all that was told")  # W&B's own process writes it, also behind the end
