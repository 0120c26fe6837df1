"""A run's numbers among Ray's own metrics, where Prometheus finds them: at the metrics port of the driver's node."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from pathor1.tracking.meanings import OF_A_RUN, OF_A_STAGE, OF_A_STEP, OF_CLIP, entry, gauge

MEANINGS = {**OF_CLIP, **OF_A_STAGE, **OF_A_STEP, **OF_A_RUN}
# Ray forgets a gauge that was not set for two of its reports, which come every 10 s; steps take minutes.
REFRESH_SECONDS = 3.0


def _ascii(text: str) -> str:
    """Ray's gauges take nothing else; a set of samples may have any name."""
    return text.encode("ascii", "backslashreplace").decode()


class RunGauges:
    """Gauges such as `ray_pathor1_reward_accuracy{run="..."}`. Nothing happens outside of a Ray cluster.

    While it is open they stay, also through a step that takes hours; 20 seconds after the process has ended they are
    gone. What has no finite value, or is no number of the last step, is not shown. done: the last step before it opens.
    """

    def __init__(self, run: str, constants: Mapping[str, float], *, done: int = 0) -> None:
        self._run = run
        self._constants = constants
        self._done = done
        self._shown: dict[str, float] = {}
        self._gauges: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._refresher = threading.Thread(target=self._refresh, name="gauges", daemon=True)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """A step is done, just now."""
        now = {"step": float(step), "last_step_timestamp_seconds": time.time()}
        with self._lock:
            self._shown = {**self._constants, **now, **values}
            self._set()

    def show(self, values: Mapping[str, float]) -> None:
        """Numbers beside those of the last step."""
        with self._lock:
            self._shown |= values
            self._set()

    def _set(self) -> None:
        import ray
        from ray.util.metrics import Gauge

        if not ray.is_initialized():
            return
        for metric, value in self._shown.items():
            name, labels = gauge(metric)
            if name not in self._gauges:
                unit, text = MEANINGS.get(entry(metric), ("", metric))  # no run ends for a help text
                told = _ascii(f"{text} ({unit})" if unit else text)
                self._gauges[name] = Gauge(name, told, tag_keys=("run", *labels))
            if math.isfinite(value):
                tags = {key: _ascii(text) for key, text in labels.items()}
                self._gauges[name].set(value, tags={"run": self._run, **tags})

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_SECONDS):
            with self._lock:
                self._set()

    def __enter__(self) -> Self:
        self.step(self._done, {})
        self._refresher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._refresher.join()
