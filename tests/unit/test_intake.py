"""Which questions come next: what a checkpoint has left first, then the stream, without what cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from pathor1.data.row_groups import Fingerprint
from pathor1.data.stream import Cursor, SourceState, StreamRow, StreamState
from pathor1.recipe import Recipe
from pathor1.rl.intake import Intake
from pathor1.rl.questions import Questions
from pathor1.runs import RunFolder
from pathor1.samples import Sample


def sample(name: str) -> Sample:
    return Sample(id=name, source="s", task="yes_no", question="?", answer="yes", images=(b"",))


@dataclass
class Rows:
    """A stream of samples that are numbered from 10 on; every third cannot be used."""

    given: int = 0
    rows: int = 100

    def take(self, count: int) -> tuple[list[Any], list[Any]]:
        usable: list[StreamRow[Sample]] = []
        dropped: list[StreamRow[Sample]] = []
        while len(usable) < count:
            place, problem = self.given, "it is torn" if self.given % 3 == 2 else None
            row = StreamRow(
                epoch=0, position=place, sample=sample(f"row-{place}"), problem=problem, number=10 + place, source="s"
            )
            (usable if problem is None else dropped).append(row)
            self.given += 1
        return usable, dropped

    def state(self) -> StreamState:
        data = Fingerprint(files=1, rows=self.rows, digest="d")
        cursor = Cursor(position=self.given)
        return StreamState(
            seed=0, sources=(SourceState(name="s", weight=1.0, cursor=cursor, given=self.given, data=data),)
        )


@pytest.fixture
def intake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Intake:
    monkeypatch.setattr(Intake, "_problem", lambda self, sample: None)  # no model is here to measure prompts by
    tree: dict[str, Any] = {"name": "a", "model": {"path": "m"}, "data": {"train": ["t"]}, "rl": {"steps": 1}}
    tree["data"]["max_bad_fraction"] = 1.0
    return Intake(
        Recipe.model_validate(tree),
        RunFolder.create(tmp_path, "a"),
        stream=cast(Any, Rows()),
        again={3: sample("three"), 7: sample("seven"), 8: sample("eight")},
        record=Questions(),
        processor=None,
    )


def test_what_a_checkpoint_has_left_is_asked_before_others_and_once(intake: Intake) -> None:
    assert {number: one.id for number, one in intake.take(2).items()} == {3: "three", 7: "seven"}
    assert list(intake.again) == [8], "it is in the next checkpoint, too"
    assert list(intake.take(4)) == [8, 10, 11, 13]
    assert intake.again == {}
    assert list(intake.take(1)) == [14]
    assert intake.metrics() == {
        "data/left_out": 1,
        "data/left_out_share": 0.01,
        "data/passed_over": 0,
        "data/s/epoch": 0,
        "data/s/position": 5,
    }
