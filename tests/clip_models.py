"""A small model of open_clip's shape, and pairs to train it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 56, "layers": 3, "width": 96, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def write_config(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """A configuration as a JSON file, with other values where `changes` has some."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    return path
