"""open_clip's models: found, built, saved, and never with another activation than their weights were trained with.

OpenAI's weights were trained with QuickGELU, an approximation of GELU. A model of the same shapes without it loads
them, and is worse by several points without a word.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pathor1.checkpoints import model_of
from pathor1.contrastive import ClipModel
from pathor1.errors import ModelError

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
FOLDER, HUB = "local-dir:", "hf-hub:"
Activation = Literal["gelu", "quick_gelu"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model that open_clip can build, in any process.

    name: as its functions take it; weights: a tag or a file, None = as name says, or random. config: open_clip's
    `model_cfg`; file: where it comes from, where that is a JSON file that open_clip does not have.
    """

    name: str
    weights: str | None
    config: dict[str, Any]
    file: str | None = None

    @property
    def context_length(self) -> int:
        """Longest text in tokens."""
        return int(self.config["text_cfg"].get("context_length", 77))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a picture, in pixels."""
        size = self.config["vision_cfg"].get("image_size", 224)
        return (size, size) if isinstance(size, int) else (size[0], size[1])


def find(model: ClipModel) -> Found:
    """What a recipe's model is. Nothing is loaded. Raises ModelError where it is none, or the activations differ."""
    where = model_of(model.weights) if model.weights else ""
    named = _architecture(model.architecture) if model.architecture else None
    if where.startswith(HUB):
        return _same(model, named, Found(name=where, weights=None, config=_config(where)))
    if Path(where).is_dir() and where:
        if not (Path(where) / CONFIG).is_file():
            raise ModelError(f"{where}: not a folder of open_clip's, it has no {CONFIG}")
        return _same(model, named, Found(name=f"{FOLDER}{where}", weights=None, config=_config(f"{FOLDER}{where}")))
    if named is None:
        raise ModelError(f"{where}: no folder of open_clip's; with a file or a tag, set model.architecture")
    if not where:
        return named
    if Path(where).is_file():
        if model.activation is None:
            raise ModelError(
                f"{where}: a file of weights does not say what they were trained with; set model.activation to "
                "'quick_gelu' (OpenAI's weights, and what was trained from them so) or 'gelu'"
            )
        _refuse(where, model.activation, named)
        return replace(named, weights=where)
    return _tagged(named, where)


def parse(where: str) -> ClipModel:
    """A model of an evaluation: `ARCHITECTURE@WEIGHTS`, a folder, or a hub's. A file's activation is taken on trust."""
    architecture, separator, weights = where.partition("@")
    if not separator:
        return ClipModel(weights=where)
    if not architecture or not weights:
        raise ModelError(f"{where}: write ARCHITECTURE@WEIGHTS, such as ViT-B-16-quickgelu@openai")
    activation = activation_of(_architecture(architecture).config) if Path(weights).is_file() else None
    return ClipModel(architecture=architecture, weights=weights, activation=activation)


def activation_of(config: dict[str, Any]) -> Activation:
    """The activation of a model's configuration."""
    return "quick_gelu" if config.get("quick_gelu", False) else "gelu"


def _architecture(name: str) -> Found:
    import open_clip

    if name.endswith(".json"):
        if not Path(name).is_file():
            raise ModelError(f"{name}: no such file of a configuration")
        stem = Path(name).stem
        if stem in open_clip.list_models() and stem not in _OWN:
            raise ModelError(f"{name}: open_clip has a model of this name already; give the file another")
        _register(name)
        if stem not in open_clip.list_models():
            raise ModelError(f"{name}: no configuration; it needs embed_dim, vision_cfg and text_cfg")
        return Found(name=stem, weights=None, config=_config(stem), file=str(Path(name).absolute()))
    if name not in open_clip.list_models():
        raise ModelError(f"model.architecture = {name!r}: open_clip has no such model; open_clip.list_models() has all")
    return Found(name=name, weights=None, config=_config(name))


# Configurations of this process that are not open_clip's own.
_OWN: set[str] = set()


def _register(file: str) -> None:
    import open_clip

    try:
        json.loads(Path(file).read_bytes())  # open_clip would keep a broken one, and fail at the next too
    except ValueError as error:
        raise ModelError(f"{file}: not JSON: {error}") from error
    open_clip.add_model_config(Path(file))
    _OWN.add(Path(file).stem)


def _config(name: str) -> dict[str, Any]:
    import open_clip

    try:
        config = deepcopy(open_clip.get_model_config(name))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: its configuration cannot be read: {_line(error)}") from error
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise ModelError(f"{name}: no configuration of a model of open_clip's")
    # Written out, so that a checkpoint says it whatever the default will be.
    config["quick_gelu"] = activation_of(config) == "quick_gelu"
    return config


def _same(model: ClipModel, named: Found | None, found: Found) -> Found:
    """What was found, which is what the recipe says beside it. Raises ModelError where it is not."""
    if model.activation is not None:
        _refuse(found.name, model.activation, found)
    if named is not None:
        _refuse(found.name, activation_of(found.config), named)
        if named.config != found.config:
            raise ModelError(f"{model.weights}: is no {model.architecture}; leave model.architecture out")
    return found


def _tagged(named: Found, tag: str) -> Found:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    known = get_pretrained_cfg(named.name, tag)
    if not known:
        tags = ", ".join(list_pretrained_tags_by_model(named.name)) or "none"
        raise ModelError(f"{tag}: no file, no folder, and no tag of {named.name} (it has {tags})")
    _refuse(f"{named.name}, {tag}", "quick_gelu" if known.get("quick_gelu", False) else "gelu", named)
    return replace(named, weights=tag)


def _refuse(where: str, trained: Activation, model: Found) -> None:
    has = activation_of(model.config)
    if trained != has:
        other = f"{model.name}-quickgelu" if trained == "quick_gelu" else model.name.removesuffix("-quickgelu")
        raise ModelError(
            f"{where}: these weights were trained with {trained}, and {model.name} has {has}: it would load them and "
            f"be worse; take {other}"
        )


def build(found: Found, *, device: str = "cpu") -> Any:
    """The model with its weights, float32. Raises ModelError where they cannot be read or do not fit."""
    import open_clip

    if found.file is not None:
        _register(found.file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model, _, _ = open_clip.create_model_and_transforms(
                found.name, pretrained=found.weights, precision="fp32", device=device
            )
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{found.weights or found.name}: cannot be loaded: {_line(error)}") from error
    return model


def tokenizer(found: Found) -> Any:
    """Texts -> [n, context_length] int64: a text that is longer is cut, and ends with the token of an end."""
    import open_clip

    if found.file is not None:
        _register(found.file)
    return open_clip.get_tokenizer(found.name, context_length=found.context_length)


def save(model: Any, config: dict[str, Any], tokenizer: Any, folder: Path) -> None:
    """Writes a folder that open_clip loads by `create_model_and_transforms("local-dir:FOLDER")`."""
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    save_config_for_hf(model, folder / CONFIG, model_config=config)
    if hasattr(tokenizer, "tokenizer"):  # Hugging Face's, whose files belong to it
        tokenizer.save_pretrained(str(folder))


def digest(model: Any, config: dict[str, Any]) -> str:
    """What a model is, by its configuration and every weight."""
    told = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        told.update(name.encode())
        told.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()[:16]


class Encoder:
    """A model that makes features of pictures and texts; a method call is one pass."""

    def __init__(self, found: Found, *, device: str = "cpu") -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.found, self.device = found, device
        self.model = build(found, device=device).eval()
        self.tokenizer = tokenizer(found)
        self.preprocess = image_transform_v2(PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False)
        self.digest = digest(self.model, found.config)

    def images(self, prepared: Sequence[Any]) -> Floats:
        """[n, d], as the model gives them: not of length 1. prepared: what `preprocess` makes of each picture."""
        import torch

        with torch.inference_mode():
            found = self.model.encode_image(torch.stack(list(prepared)).to(self.device), normalize=False)
        values: Floats = found.float().cpu().numpy()
        return values

    def texts(self, texts: Sequence[str]) -> Floats:
        """[n, d], of length 1."""
        import torch

        with torch.inference_mode():
            found = self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)
        values: Floats = found.float().cpu().numpy()
        return values


def unit(features: Floats) -> Floats:
    """Features made of length 1."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def device() -> str:
    """Where an evaluation computes."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def devices() -> int:
    """How many models an evaluation computes with, on this machine alone: one a GPU, or one on the CPUs."""
    import torch

    return max(1, torch.cuda.device_count())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
