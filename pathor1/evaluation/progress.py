"""How far something has come: a bar in a terminal, and lines in a job's log."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

# A line at most this often, in seconds; also how long finished work waits to be written, at most.
EVERY = 10.0


@dataclass
class Progress:
    """Counts what is done. Where standard error is a terminal, tqdm draws a bar there; else a line is printed every
    `EVERY` seconds and at the end.

    done: what an earlier start did; the rate is of this one. told: what a line or the bar says behind its numbers.
    """

    name: str
    total: int
    what: str
    done: int = 0
    told: str = ""
    _started: float = field(init=False)
    _shown: float = field(init=False)
    _before: int = field(init=False)
    _bar: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._before = self.done
        self._started = self._shown = time.monotonic()
        # A terminal without a width, as a container's may be, would have a bar of no letters.
        if sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total, initial=self.done, desc=self.name, unit=f" {self.what}", dynamic_ncols=True
            )

    def add(self, count: int) -> None:
        """Counts `count` more."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(self.told, refresh=False)
            self._bar.update(count)
            if self.done >= self.total:
                self._bar.close()
            return
        now = time.monotonic()
        if now - self._shown < EVERY and self.done < self.total:
            return
        self._shown = now
        rate = (self.done - self._before) / max(now - self._started, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        told = f"; {self.told}" if self.told else ""
        print(f"{self.name}: {self.done:,} of {self.total:,} {self.what}, {rate:.1f} a second{left}{told}", flush=True)
