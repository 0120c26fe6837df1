"""The questions of a run in order: those that a checkpoint has left unanswered, then those of the stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathor1.data import prompt_length
from pathor1.data.left_out import LeftOut
from pathor1.data.stream import SampleStream, StreamRow
from pathor1.errors import DataError
from pathor1.recipe import Recipe
from pathor1.rl.questions import Questions
from pathor1.runs import RunFolder
from pathor1.samples import Sample


class Intake:
    """Those of one run. again: what a checkpoint has left, by number; record: how each question has gone so far.

    processor: the model's, by which prompts are measured.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        *,
        stream: SampleStream[Sample],
        again: Mapping[int, Sample],
        record: Questions,
        processor: Any,
    ) -> None:
        self.recipe = recipe
        self.stream = stream
        self.again = dict(again)
        self.record = record
        self.processor = processor
        self.left_out = LeftOut(folder.left_out, start=stream.state(), max_fraction=recipe.data.max_bad_fraction)
        self._in_a_row = 0  # samples that were left out since the last that was not

    def take(self, count: int) -> dict[int, Sample]:
        """The next questions by their numbers in the run.

        Raises DataError where too many samples cannot be used, or a whole epoch's worth of them.
        """
        first = dict(list(self.again.items())[:count])
        self.again = {number: sample for number, sample in self.again.items() if number not in first}
        rows: list[StreamRow[Sample]] = []
        while len(first) + len(rows) < count:
            usable, dropped = self.stream.take(count - len(first) - len(rows))
            for row in [*dropped, *usable]:
                problem = row.problem or self._problem(row.sample)
                if problem is not None:
                    self._leave_out(row, problem)
                elif not self.record.pass_over(row.sample.id):
                    rows.append(row)
            self._in_a_row = 0 if rows else self._in_a_row
        return first | {row.number: row.sample for row in rows}

    def metrics(self) -> dict[str, float]:
        """How far the run is in its data, and what it has not asked."""
        values = {
            "data/left_out": float(self.left_out.count),
            "data/left_out_share": self.left_out.share,
            "data/passed_over": float(self.record.passed_over),
        }
        for source in self.stream.state().sources:
            values[f"data/{source.name}/epoch"] = float(source.cursor.epoch)
            values[f"data/{source.name}/position"] = float(source.cursor.position)
        return values

    def _problem(self, sample: Sample) -> str | None:
        """Why verl cannot train on a question, found before it costs a rollout; None = it can."""
        if not sample.images:
            return "has no picture, and verl cannot train on a batch without any"
        limit = self.recipe.data.max_prompt_tokens
        sizes = [prompt_length.size(picture) for picture in sample.images]
        tokens = prompt_length.prompt_tokens(sample, sizes, self.processor, self.recipe.data.system_prompt)
        if tokens > limit:
            return f"the prompt has {tokens} tokens and data.max_prompt_tokens is {limit}"
        return None

    def _leave_out(self, row: StreamRow[Sample], problem: str) -> None:
        place = f"epoch {row.epoch}, row {row.position} of {row.source}"
        print(f"left out: sample {row.sample.id} ({place}): {problem}", flush=True)
        self.left_out.add(row, problem)
        self._in_a_row += 1
        if self._in_a_row > self.stream.rows:
            raise DataError(f"none of the {self.stream.rows} training samples can be used; the last: {problem}")
