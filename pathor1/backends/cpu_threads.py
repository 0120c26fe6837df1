"""The threads of a rank and of its vLLM engine on a CPU: their share of the machine's cores.

Ray gives a worker as many as the CPUs that it asked for, which is one. A rank and its engine take turns, so that each
has the whole share.
"""

from __future__ import annotations

import os

import torch

# How many ranks share a machine; not set where the user has set OMP_NUM_THREADS, which counts then.
RANKS = "PATHOR1_RANKS_PER_NODE"


def share() -> int | None:
    """How many threads a rank has on this machine; None = what Ray, or the user, has said."""
    ranks = os.environ.get(RANKS)
    return None if ranks is None else max(1, len(os.sched_getaffinity(0)) // int(ranks))


def take() -> None:
    """Gives this process its share."""
    if (threads := share()) is not None:
        torch.set_num_threads(threads)
