"""A run that is asked to stop: by SIGTERM, which `ray job stop`, Kubernetes and spot instances send."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Abandoned(Exception):  # noqa: N818 (no error: what was asked for)
    """A step is given up before it has changed the model: the run ends as if it had not begun."""


class Stopped(Exception):  # noqa: N818 (no error: what was asked for)
    """The run ends behind a whole step, its argument, and the checkpoint of it is written."""


class Stop:
    """Whether the run has been asked to stop."""

    asked = False

    def abandon(self) -> None:
        """Raises Abandoned where it has."""
        if self.asked:
            raise Abandoned


@contextmanager
def listening(stop: Stop) -> Iterator[None]:
    """Within it, SIGTERM asks for the stop in place of what it did before. Main thread alone, after `ray.init()`."""

    def ask(number: int, frame: Any) -> None:
        stop.asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
