"""When each phase of verl's trainer, or of one that is made of it, begins and ends: Unix time, a JSON line each."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The modules of both trainers that time a phase by verl's `marked_timer`, each with a name of its own for it.
TIMED = ("verl.trainer.ppo.v1.trainer_base", "verl.trainer.ppo.v1.trainer_sync", "pathor1.rl.trainer")


def record(path: Path) -> None:
    """In the process that trains: writes down each phase that ends from here on."""
    from verl.utils.debug import marked_timer

    @contextmanager
    def recorded(name: str, *arguments: Any, **options: Any) -> Iterator[None]:
        begin = time.time()
        with marked_timer(name, *arguments, **options):
            yield
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": name, "begin": begin, "end": time.time()}) + "\n")

    for name in TIMED:
        importlib.import_module(name).marked_timer = recorded  # type: ignore[attr-defined]


def read(path: Path) -> list[dict[str, tuple[float, float]]]:
    """What `record` wrote, a dict for each step: phase -> (begin, end). "stream" runs within "gen"."""
    steps: list[dict[str, tuple[float, float]]] = []
    now: dict[str, tuple[float, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        now[found["phase"]] = found["begin"], found["end"]
        if found["phase"] == "step":  # the last to end of each
            steps.append(now)
            now = {}
    return steps


def spans(steps: Sequence[dict[str, tuple[float, float]]], phase: str) -> list[tuple[float, float]]:
    """Of one phase, in those steps that have it."""
    return [step[phase] for step in steps if phase in step]
