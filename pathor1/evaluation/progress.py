"""Lines that say how far something has come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

# A line at most this often, in seconds; also how long finished work waits to be written, at most.
EVERY = 10.0


@dataclass
class Progress:
    """Counts what is done, and says so every `EVERY` seconds and at the end."""

    name: str
    total: int
    what: str
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)

    def add(self, count: int) -> None:
        """Counts `count` more."""
        self.done += count
        now = time.monotonic()
        if now - self.shown < EVERY and self.done < self.total:
            return
        self.shown = now
        rate = self.done / max(now - self.started, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if 0 < self.done < self.total else ""
        print(f"{self.name}: {self.done:,} of {self.total:,} {self.what}, {rate:.1f} a second{left}", flush=True)
