"""glibc's heap: what a training step frees is kept for the next one.

By itself glibc asks the kernel for each piece of 32 MB or more, and gives it back as soon as it is freed; the kernel
fills its pages with zeros, one by one, when they are touched again. DeepSpeed takes some such pieces in every step, for
gradients: 47,000 pages of a model of 13.6 million parameters, a tenth of the step's time.
"""

from __future__ import annotations

import ctypes
import platform

# For how many heaps a process may have. Threads but the first otherwise have heaps of 64 MB, which are given back too.
HEAPS = "MALLOC_ARENA_MAX"
# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def limit_heaps(wanted: str | None) -> None:
    """In a process that was forked: does what glibc does with the variable in one that starts; None = not set."""
    if wanted is not None and wanted.isdecimal():
        _mallopt(M_ARENA_MAX, int(wanted))


def keep_freed() -> None:
    """From now on this process keeps what it frees; it has its most memory for good. Nothing, where glibc is not."""
    _mallopt(M_MMAP_MAX, 0)
    _mallopt(M_TRIM_THRESHOLD, -1)  # never


def _mallopt(option: int, value: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(option, value)
