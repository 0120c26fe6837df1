"""Checkpoints are read as data: torch's `weights_only`, where verl asks for the opposite.

What `torch.load` reads is a pickle, which can run code. With `weights_only` it makes tensors, plain values and what is
named here, and refuses the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# What numpy's random state in verl's checkpoints is made of: an array.
_ARRAY = (np.empty(0).__reduce__()[0], np.ndarray, np.dtype, np.dtypes.UInt32DType)


@contextmanager
def weights_only(*classes: type) -> Iterator[None]:
    """Within it `torch.load` reads with `weights_only`, whatever its caller says. `classes`: others it may make."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        with torch.serialization.safe_globals([*_ARRAY, *classes]):
            yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
