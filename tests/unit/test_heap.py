"""What a process keeps of the memory that it has freed, each time in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

STEPS = """
import ctypes, resource, sys, threading
from pathor1 import heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def step():
    pieces = [libc.malloc(megabytes << 20) for _ in range(4)]
    for piece in pieces:
        libc.memset(piece, 1, megabytes << 20)
    for piece in pieces:
        libc.free(piece)

def steps():
    KEEP
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)

megabytes = MEGABYTES
LIMIT
WHERE
"""
HERE, THREAD = "steps()", "thread = threading.Thread(target=steps); thread.start(); thread.join()"


def pages_of_a_step(megabytes: int, *, keep: str, limit: str = "", where: str = HERE) -> int:
    """Pages that the kernel fills for a step which takes four pieces and frees them."""
    program = STEPS.replace("MEGABYTES", str(megabytes))
    for name, text in {"KEEP": keep, "LIMIT": limit, "WHERE": where}.items():
        program = program.replace(name, text)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("megabytes", [8, 80])
def test_what_a_step_frees_is_there_for_the_next(megabytes: int) -> None:
    kept = pages_of_a_step(megabytes, keep="heap.keep_freed()")
    assert kept < 100
    assert pages_of_a_step(megabytes, keep="pass") > 1000  # what it is good for


def test_a_thread_keeps_it_too_where_there_is_one_heap() -> None:
    kept = pages_of_a_step(24, keep="heap.keep_freed()", limit='heap.limit_heaps("1")', where=THREAD)
    assert kept < 100


@pytest.mark.parametrize("wanted", [None, "", "many"])
def test_a_variable_that_is_no_number_limits_nothing(wanted: str | None) -> None:
    limit = f"heap.limit_heaps({wanted!r})"
    assert pages_of_a_step(24, keep="heap.keep_freed()", limit=limit, where=THREAD) > 1000
