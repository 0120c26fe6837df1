"""Python itself, in processes whose threads take turns and which stay for long."""

from __future__ import annotations

import gc
import sys

# Seconds for which a thread may keep the interpreter from others that wait for it; Python's own are 5 ms. A loop that
# hands requests on waits so long for each thread that meanwhile reads a picture.
TURN = 3e-4


def take_turns() -> None:
    """The threads of this process, and of those that are forked from it, wait no longer than `TURN` for each other."""
    sys.setswitchinterval(TURN)


def settle() -> None:
    """Called when all is there that stays, which the garbage collector then no longer looks through.

    What libraries and models are made of takes it 50 ms of a step, and a second where each process has imported them.
    """
    take_turns()
    gc.collect()
    gc.freeze()
