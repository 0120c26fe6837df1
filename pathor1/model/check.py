"""Is a folder a vision-language model that can be trained here? Asked of its JSON files, before torch is imported."""

from __future__ import annotations

import json
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
