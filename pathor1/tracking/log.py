"""Where a run's numbers go: one JSON object a step, TensorBoard, Ray's own metrics, and trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pathor1 import files
from pathor1.tracking.gauges import RunGauges


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl` and writes the same numbers to TensorBoard.

    They are gauges of Ray's too (`RunGauges`), beside `constants`, which do not change. trackers: "wandb", "mlflow",
    through verl's tracking. A resumed run goes on behind its last checkpoint: `keep_up_to` drops the steps that are run
    again.
    """

    def __init__(
        self,
        path: Path,
        tensorboard: Path,
        *,
        run: str,
        keep_up_to: int,
        trackers: Sequence[str] = (),
        recipe: Mapping[str, Any] | None = None,
        constants: Mapping[str, float] | None = None,
    ) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text.split("\n")[:-1]  # what stands behind the last line's end is half a line of a run that was killed
        files.write(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= keep_up_to))
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(tensorboard), purge_step=keep_up_to + 1)
        self._tracking = _tracking(run, trackers, recipe or {}) if trackers else None
        self.gauges = RunGauges(run, constants or {}, done=keep_up_to)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One step's numbers, with ten digits, and null for what is not finite; on disk when this returns."""
        self._file.write(_line(step, values))
        self._file.flush()
        self._tell(step, values)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that a step has beside those that were written of it, by whatever process: it is the last one."""
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        row = json.loads(lines[-1]) if lines else {}  # a run that goes on from a store has none
        if row.pop("step", None) == step:
            del lines[-1]
        else:
            row = {}
        self._file.close()
        files.write(self._path, "".join([*lines, _line(step, {**row, **values})]))
        self._file = self._path.open("a", encoding="utf-8")
        self._tell(step, values)

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        """TensorBoard, the trackers and Ray."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        if self._tracking is not None:
            self._tracking.log(data=dict(values), step=step)
        self.gauges.step(step, values)

    def __enter__(self) -> Self:
        self.gauges.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gauges.__exit__(kind, error, trace)
        self._file.close()
        self._writer.close()
        if self._tracking is not None:
            self._tracking.finish()


def _tracking(run: str, trackers: Sequence[str], recipe: Mapping[str, Any]) -> Any:
    from verl.utils.tracking import Tracking

    return Tracking("pathor1", run, list(trackers), config={"trainer": {}, **recipe})


def _line(step: int, values: Mapping[str, float | None]) -> str:
    row = {"step": step, **{name: _rounded(value) for name, value in sorted(values.items())}}
    return json.dumps(row, allow_nan=False) + "\n"


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.10g}") if value is not None and math.isfinite(value) else None
