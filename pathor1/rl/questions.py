"""How each question has gone so far: the pass-rate record, by which settled questions come less often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1.files import replacing
from pathor1.rl.groups import SAME, Group

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False, metadata={"doc": "the sample's id"}),
        pa.field("attempts", pa.int64(), nullable=False, metadata={"doc": "groups that were asked"}),
        pa.field("mean_accuracy", pa.float64(), nullable=False, metadata={"doc": "over all rollouts of all attempts"}),
        pa.field("last_step", pa.int64(), nullable=False, metadata={"doc": "of the last attempt"}),
        pa.field("passed_over", pa.int64(), nullable=False, metadata={"doc": "times since then that it was not asked"}),
    ]
)
NAME = "questions.parquet"
# Under which the file has, beside the rows, how many questions were passed over in all.
PASSED_OVER = b"passed_over"


@dataclass(slots=True, kw_only=True)
class Question:
    """One question's record, with the columns of `SCHEMA`."""

    id: str
    attempts: int
    mean_accuracy: float
    last_step: int
    passed_over: int = 0


class Questions:
    """The record of all questions that were asked.

    revisit_every: of the epochs in which a settled question comes, it is asked in one of so many; 1 = in each.
    passed_over: how many times, in all, one came and was not asked.
    """

    def __init__(self, *, revisit_every: int = 1) -> None:
        self.revisit_every = revisit_every
        self.records: dict[str, Question] = {}
        self.passed_over = 0
        self._looked_at: list[tuple[Question, int]] = []  # since `begin`: how often each had been passed over

    def begin(self) -> None:
        """A step begins: `rewind` goes back to here."""
        self._looked_at = []

    def rewind(self) -> None:
        """The step is given up: what it passed over comes again."""
        for known, before in reversed(self._looked_at):
            self.passed_over -= known.passed_over != 0
            known.passed_over = before
        self.begin()

    def add(self, group: Group) -> None:
        """A group has finished."""
        known = self.records.get(group.sample)
        if known is None:
            self.records[group.sample] = Question(
                id=group.sample, attempts=1, mean_accuracy=group.pass_rate, last_step=group.step
            )
            return
        known.mean_accuracy += (group.pass_rate - known.mean_accuracy) / (known.attempts + 1)
        known.attempts += 1
        known.last_step = group.step

    def pass_over(self, sample: str) -> bool:
        """Whether a question that comes now is not asked: it was always right, or always wrong, and is not due yet."""
        known = self.records.get(sample)
        if known is None or SAME < known.mean_accuracy < 1 - SAME:
            return False
        self._looked_at.append((known, known.passed_over))
        known.passed_over = (known.passed_over + 1) % self.revisit_every
        self.passed_over += known.passed_over != 0
        return known.passed_over != 0

    def save(self, folder: Path) -> None:
        """Writes the record into a checkpoint, whole or not at all."""
        with replacing(folder / NAME) as part:
            # Column by column: of millions of records, a dict for each would take longer than all the rest.
            columns = [[getattr(record, name) for record in self.records.values()] for name in SCHEMA.names]
            schema = SCHEMA.with_metadata({PASSED_OVER: str(self.passed_over)})
            pq.write_table(pa.table(columns, schema=schema), part, compression="zstd")

    def load(self, folder: Path) -> None:
        """Reads the record of a checkpoint."""
        table = pq.read_table(folder / NAME)
        self.records = {row["id"]: Question(**row) for row in table.to_pylist()}
        self.passed_over = int(table.schema.metadata[PASSED_OVER])
