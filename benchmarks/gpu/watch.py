"""What the GPU does meanwhile, as its driver tells it: busy or not, memory and power, ten times a second."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

EVERY = 0.1


@dataclass(frozen=True, slots=True)
class Look:
    """at: Unix time in s; busy: share of the driver's last period in which a kernel ran; memory: bytes; power: W."""

    at: float
    busy: float
    memory: int
    power: float


def gpu() -> str | None:
    """The first GPU's name; None where there is none, or torch cannot use it."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


class Watch:
    """Looks at the first GPU until it is closed. Without a GPU it sees nothing."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            import pynvml as driver  # a part of the environment for GPUs
        except ImportError:
            return
        try:
            driver.nvmlInit()
            device: Any = driver.nvmlDeviceGetHandleByIndex(0)
        except driver.NVMLError:
            return
        while not self._ended.wait(EVERY):
            self.looks.append(
                Look(
                    time.time(),
                    driver.nvmlDeviceGetUtilizationRates(device).gpu / 100,
                    driver.nvmlDeviceGetMemoryInfo(device).used,
                    driver.nvmlDeviceGetPowerUsage(device) / 1000,
                )
            )


def during(looks: Sequence[Look], spans: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """Mean busy share and power, and the most memory in GB, within spans of Unix time; None where nothing was seen."""
    seen = [look for look in looks if any(begin <= look.at <= end for begin, end in spans)]
    if not seen:
        return {"busy": None, "power_w": None, "memory_gb": None}
    return {
        "busy": round(statistics.fmean(look.busy for look in seen), 3),
        "power_w": round(statistics.fmean(look.power for look in seen)),
        "memory_gb": round(max(look.memory for look in seen) / 1e9, 2),
    }
