"""Is a folder a vision-language model that can be trained here? Asked of its JSON files, before torch is imported."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a model's memory is made of. parameters: all of them, those of the vision part among them."""

    parameters: int
    layers: int  # of the language model, as are the following
    hidden: int
    vocabulary: int
    key_value_heads: int
    head: int  # width of one


def size(path: str) -> Size | None:
    """A model's size from its config and the headers of its safetensors files; None for a hub's that is not here.

    Raises ModelError where weights are missing.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = {**config, **config.get("text_config", {})}  # older ones have the language model's keys at the top
    heads = text["num_attention_heads"]
    return Size(
        parameters=sum(math.prod(shape) for file in _weight_files(folder) for shape in _shapes(file)),
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        vocabulary=text["vocab_size"],
        key_value_heads=text.get("num_key_value_heads") or heads,
        head=text.get("head_dim") or text["hidden_size"] // heads,
    )


def _weight_files(folder: Path) -> list[Path]:
    """The model's safetensors files, those that its index names. Raises ModelError where one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors")) or ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: no {', '.join(missing)}; download the model again, it is not whole")
    return [folder / name for name in names]


def largest_weight(path: str) -> int:
    """Bytes of a model folder's largest weight in float32, from the headers of its safetensors files."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return UNKNOWN_LARGEST
    return max((_largest(file) for file in folder.glob("*.safetensors")), default=UNKNOWN_LARGEST)


def _largest(file: Path) -> int:
    return max(4 * math.prod(shape) for shape in _shapes(file))


def _shapes(file: Path) -> list[list[int]]:
    """The shapes of a safetensors file, which begins with the length of its header (8 bytes, little-endian) and JSON.

    Raises ModelError where it does not.
    """
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        return [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise ModelError(f"{file}: not a safetensors file; download the model again") from error
