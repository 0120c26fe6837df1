"""The ledger: what every rollout was, and what it was worth. One Parquet file a step, one row a rollout."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pathor1.files import replacing

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field(
            "group",
            pa.string(),
            nullable=False,
            metadata={"doc": "the question's number in the run, in the order of the stream"},
        ),
        pa.field("rollout", pa.int64(), nullable=False, metadata={"doc": "0 ... group size - 1"}),
        pa.field("id", pa.string(), nullable=False, metadata={"doc": "the sample's id"}),
        pa.field("source", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False, metadata={"doc": "what the model said"}),
        pa.field("answer", pa.string(), nullable=False, metadata={"doc": "the right answer"}),
        pa.field("parsed", pa.string(), metadata={"doc": "the answer the model committed to; null = none"}),
        pa.field("reason", pa.string(), nullable=False, metadata={"doc": "why the reward is what it is"}),
        pa.field("format", pa.float64(), nullable=False),
        pa.field("accuracy", pa.float64(), nullable=False),
        pa.field("length", pa.float64(), nullable=False),
        pa.field("format_weight", pa.float64(), nullable=False),
        pa.field("accuracy_weight", pa.float64(), nullable=False),
        pa.field("length_weight", pa.float64(), nullable=False),
        pa.field("total", pa.float64(), nullable=False, metadata={"doc": "the weighted sum that is learned from"}),
        pa.field("advantage", pa.float64(), metadata={"doc": "group-relative; null = not trained on"}),
        pa.field("response_tokens", pa.int64(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False, metadata={"doc": "cut at the token limit"}),
        pa.field("stop_reason", pa.string(), nullable=False, metadata={"doc": "vLLM's: completed, length or aborted"}),
        pa.field("asked", pa.int64(), nullable=False, metadata={"doc": "the step in which the question was asked"}),
        pa.field(
            "policy_version",
            pa.int64(),
            nullable=False,
            metadata={"doc": "the step after which the weights stood that said it; 0 = the model of model.path"},
        ),
        pa.field(
            "last_policy_version",
            pa.int64(),
            metadata={"doc": "of its last token, where it was interrupted and later weights went on; null = the same"},
        ),
        pa.field("dropped", pa.string(), metadata={"doc": "why its group was not learned from; null = it was"}),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One rollout, with the columns of `SCHEMA`."""

    step: int
    group: str
    rollout: int
    id: str
    source: str
    task: str
    text: str
    answer: str
    parsed: str | None
    reason: str
    format: float
    accuracy: float
    length: float
    format_weight: float
    accuracy_weight: float
    length_weight: float
    total: float
    advantage: float | None
    response_tokens: int
    truncated: bool
    stop_reason: str
    asked: int
    policy_version: int
    last_policy_version: int | None = None
    dropped: str | None = None


def path(folder: Path, step: int) -> Path:
    """Where a step's rows lie: `ledger/step-000007.parquet`."""
    return folder / f"step-{step:06d}.parquet"


def remove_after(folder: Path, step: int) -> None:
    """Removes the files of later steps: a run that was stopped and goes on behind `step` runs them again."""
    for file in folder.glob("step-*.parquet"):
        if int(file.stem.removeprefix("step-")) > step:
            file.unlink()


def remove_groups(folder: Path, step: int, groups: Collection[str]) -> None:
    """Removes the rows of groups that a step wrote off and that wait again: the run goes on behind its last step."""
    file = path(folder, step)
    if groups and file.exists():
        table = pq.read_table(file)
        keep = pc.invert(pc.is_in(table["group"], pa.array(sorted(groups))))
        with replacing(file) as part:
            pq.write_table(table.filter(keep), part, compression="zstd")


def write(folder: Path, step: int, rows: Sequence[LedgerRow]) -> Path:
    """Writes a step's rows, whole or not at all; a step that is run again after a resume replaces its file."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    target = path(folder, step)
    with replacing(target) as part:
        pq.write_table(table, part, compression="zstd")
    return target


class Writer:
    """Writes steps in a thread of its own, so that training does not wait for a disk.

    What went wrong with a step is raised by the next call. Leaving the block waits for all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._last: Future[Path] | None = None

    def write(self, step: int, rows: Sequence[LedgerRow]) -> None:
        """Begins to write a step's rows; waits for the step before."""
        self.flush()
        self._last = self._thread.submit(write, self.folder, step, rows)

    def flush(self) -> None:
        """Waits until all is on disk. Raises OSError where it could not be written."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
        self.flush()
