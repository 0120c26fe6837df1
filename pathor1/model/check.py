"""Is a folder a vision-language model that can be trained here? Asked of its JSON files, before torch is imported."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from pathor1.errors import ModelError

MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check(path: str) -> None:
    """Raises ModelError unless `path` is the folder of a Qwen2.5-VL or Qwen3-VL, or looks like a hub's name.

    A hub's model is checked by transformers when it is downloaded.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        if _HUB_NAME.fullmatch(path) and not path.startswith("."):
            return
        raise ModelError(f"{path}: no such model folder; `pathor1 model tiny` makes a small one to try things on")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{path}: not a model folder, it has no config.json") from None
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'}: JSON but not an object; it is no model's")
    kind = config.get("model_type")
    if "vision_config" not in config:
        raise ModelError(f"{path}: a {kind} model without a vision part; it takes one of {', '.join(MODEL_TYPES)}")
    if kind not in MODEL_TYPES:
        raise ModelError(f"{path}: a vision-language model of type {kind}; it takes one of {', '.join(MODEL_TYPES)}")
    # transformers 5 writes the image processor into processor_config.json; the tokenizer has a file of its own in both.
    for names in (("preprocessor_config.json", "processor_config.json"), ("tokenizer_config.json",)):
        if not any((folder / name).exists() for name in names):
            raise ModelError(f"{path}: no {names[0]}; save the processor beside the model")


# Where a hub's model has not been downloaded yet; the embedding of Qwen2.5-VL-7B is 2.2 GB in float32.
UNKNOWN_LARGEST = 2200 << 20


def largest_weight(path: str) -> int:
    """Bytes of a model folder's largest weight in float32, from the headers of its safetensors files."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return UNKNOWN_LARGEST
    return max((_largest(file) for file in folder.glob("*.safetensors")), default=UNKNOWN_LARGEST)


def _largest(file: Path) -> int:
    """A safetensors file begins with the length of its header (8 bytes, little-endian) and the header as JSON."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return max(4 * math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
