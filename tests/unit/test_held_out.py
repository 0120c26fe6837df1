"""Evaluation within a run: which questions, when, in numbers, and when a run has no patience left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from questions import some
from test_report import rollout

from pathor1 import checkpoints
from pathor1.checkpoints import Evaluated, Manifest
from pathor1.errors import DataError
from pathor1.evaluation import questions as asked
from pathor1.evaluation.questions import Listing, listing, read_unit, sampled
from pathor1.recipe import Data, Model, Recipe
from pathor1.recipe_rl import RL
from pathor1.rl import held_out, starts
from pathor1.rl.ledger import LedgerRow
from pathor1.samples import SCHEMA, to_row, write


def ids(found: Listing) -> list[str]:
    return [sample.id for sample in found.samples]


def recipe(file: Path | str = "t.parquet", **rl: int) -> Recipe:
    data = Data(train=[str(file)], test=[str(file)])
    return Recipe(name="run", model=Model(path="m"), data=data, rl=RL(**{"steps": 9, "evaluate_every": 4, **rl}))


def evaluated(*accuracies: float) -> list[Evaluated]:
    return [Evaluated(step=4 * place, accuracy=each, questions="q") for place, each in enumerate(accuracies, start=1)]


def test_a_sample_of_the_questions_is_the_seeds_and_keeps_their_order_and_their_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "WINDOW", 8)
    samples = [some(f"q{number:02d}", images=(b"%d" % number,)) for number in range(50)]
    # Others in between: the rows of the file are not the numbers of the questions.
    rows = [
        to_row(each) for one in samples for each in (replace(one, id=f"{one.id}?", task="caption", options=None), one)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "t.parquet", row_group_size=12)
    whole = listing([str(tmp_path / "t.parquet")], tasks=["mcq"])
    some_of_them = sampled(whole, 20, seed=3)
    assert len(set(ids(some_of_them))) == 20
    assert ids(some_of_them) == sorted(ids(some_of_them))
    assert sampled(whole, 20, seed=3) == some_of_them
    assert set(ids(sampled(whole, 20, seed=4))) != set(ids(some_of_them))
    shown = [one for unit in some_of_them.units for window in read_unit(unit) for one in window]
    assert [one.id for one in shown] == ids(some_of_them)
    assert all(one.images == (one.id.removeprefix("q").lstrip("0").encode() or b"0",) for one in shown)
    assert sampled(whole, 50, seed=3) is whole


def test_other_questions_than_before_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    write([some(f"q{number}") for number in range(5)], file)
    found = held_out.questions(recipe(file))
    done = [Evaluated(step=4, accuracy=0.5, questions=found.digest)]
    assert held_out.questions(recipe(file), done) == found
    with pytest.raises(
        DataError, match="others than at the evaluation of step 4, .* set data.test and rl.evaluate_samples"
    ):
        held_out.questions(recipe(file, evaluate_samples=4), done)


def test_every_so_many_steps_and_the_last_are_owed_until_they_are_done() -> None:
    owed = [step for step in range(11) if held_out.is_owed(step, recipe(), [])]
    assert owed == [4, 8, 9, 10], "10: a run that was longer before"
    assert [step for step in range(11) if held_out.is_owed(step, recipe(), evaluated(0.1))] == [8, 9, 10]
    assert not any(held_out.is_owed(step, recipe(evaluate_every=0), []) for step in range(11))


@pytest.mark.parametrize(
    ("accuracies", "behind"),
    [((), 0), ((0.5,), 0), ((0.5, 0.4), 1), ((0.5, 0.5, 0.5), 2), ((0.5, 0.4, 0.6), 0), ((0.6, 0.5, 0.55, 0.59), 3)],
)
def test_patience_counts_the_evaluations_behind_the_best(accuracies: tuple[float, ...], behind: int) -> None:
    done = evaluated(*accuracies)
    assert held_out.since_best(done) == behind
    for patience in (1, 2, 3):
        assert held_out.ends_early(done, patience) == (behind >= patience)
    assert not held_out.ends_early(done, None)


def test_a_run_is_done_when_its_last_step_is_evaluated_or_its_patience_is_at_its_end(tmp_path: Path) -> None:
    def state(step: int, done: list[Evaluated], **rl: int) -> starts.Done | None:
        root = tmp_path / f"{step}-{len(done)}-{len(rl)}"
        path = checkpoints.folder(root / "run/checkpoints", step)
        path.mkdir(parents=True, exist_ok=True)
        stream = checkpoints._stream({"seed": 0, "sources": []})
        checkpoints.seal(path, Manifest(step=step, stream=stream, ranks=1, files={}, evaluations=tuple(done)))
        assert checkpoints.read(path).evaluations == tuple(done)
        return starts.done(recipe(**rl).model_copy(update={"runs_dir": str(root)}))

    assert state(9, evaluated(0.5, 0.4)) is None, "step 9 is not evaluated"
    last = Evaluated(step=9, accuracy=0.1, questions="q")
    assert state(9, [*evaluated(0.5, 0.4), last]) == starts.Done(what="has done its 9 steps", key="rl.steps")
    assert state(8, evaluated(0.5, 0.4)) is None
    early = starts.Done(what="has stopped early, behind step 8", key="rl.early_stop_patience")
    assert state(8, evaluated(0.5, 0.4), early_stop_patience=1) == early
    assert state(8, evaluated(0.5, 0.4), early_stop_patience=2) is None
    assert state(8, evaluated(0.5), early_stop_patience=1) is None, "step 8 is not evaluated"


def rows() -> list[LedgerRow]:
    right = rollout(4, some("a"), group="0", right=True)
    wrong = [replace(right, group=str(number), accuracy=0.0, response_tokens=20) for number in (1, 2)]
    cut = replace(wrong[1], parsed=None, truncated=True, format=0.0, response_tokens=48)
    failed = replace(
        cut,
        group="3",
        id="late",
        text="",
        truncated=False,
        response_tokens=0,
        dropped="failed",
        reason="NoAnswer: late",
    )
    return [right, wrong[0], cut, failed]


def test_a_question_that_failed_is_a_wrong_answer_and_is_told() -> None:
    assert held_out.metrics(rows()) == pytest.approx(
        {
            "evaluation/accuracy": 0.25,
            "evaluation/accuracy_low": 0.0456,  # Wilson's, 1 of 4
            "evaluation/accuracy_high": 0.6994,
            "evaluation/questions": 4,
            "evaluation/failed": 1,
            "evaluation/format": 0.5,
            "evaluation/unparsed": 0.5,
            "evaluation/truncated": 0.25,
            "evaluation/response_tokens": (14 + 20 + 48) / 3,
        },
        abs=1e-4,
    )
    first, second = held_out.told(rows(), 4).splitlines()
    assert first.startswith(
        "step 4: 25.0% of 4 held-out questions right (4.6% to 69.9%), format 50.0%; 1 without an ans"
    )
    assert second == "no answer: sample late: NoAnswer: late"
    assert "\n" not in held_out.told(rows()[:3], 4)
