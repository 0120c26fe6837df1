"""Words and names that the quality rules know: `vocabulary.toml`."""

from __future__ import annotations

import functools
import tomllib
from importlib.resources import files
from typing import Any


@functools.cache
def vocabulary() -> dict[str, Any]:
    """The tables of the file."""
    return tomllib.loads(files("pathor1.curation").joinpath("vocabulary.toml").read_text(encoding="utf-8"))
