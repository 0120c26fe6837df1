"""Python's garbage collector and its threads, in processes of a run."""

from __future__ import annotations

import gc
import sys

from pathor1 import interpreter


def test_what_is_there_is_not_looked_through_any_more_and_what_comes_is() -> None:
    before = sys.getswitchinterval()
    stays = [[] for _ in range(10_000)]
    try:
        interpreter.settle()
        assert gc.get_freeze_count() > len(stays)
        assert len(gc.get_objects()) < len(stays)
        comes = [[] for _ in range(100)]
        assert len(gc.get_objects()) > len(comes)
        assert sys.getswitchinterval() <= 5e-4
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)
