"""Prompt files of zero-shot classification, in CONCH's layout.

{"0": {"classnames": {CLASS: [synonym, ...]}, "templates": ["an image of CLASSNAME.", ...]}}. Those of the paper's five
sets are in `prompts/`; what the authors used of them is not published, beyond the examples in section 4.2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pathor1.errors import DataError

PLACE = "CLASSNAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The classes with their synonyms, in the file's order, and the sentences they are put into."""

    classes: dict[str, tuple[str, ...]]
    templates: tuple[str, ...]

    def texts(self, name: str) -> list[str]:
        """All sentences of a class: each synonym in each template."""
        return [template.replace(PLACE, synonym) for synonym in self.classes[name] for template in self.templates]


def names() -> list[str]:
    """The prompts that come with the project."""
    folder = files("pathor1.clip") / "prompts"
    return sorted(each.name.removesuffix(".json") for each in folder.iterdir() if each.name.endswith(".json"))


def load(where: str) -> Prompts:
    """Reads a file of prompts, or, by a name without `.json`, one that comes with the project.

    Raises DataError for one that is missing, malformed, of fewer than two classes, or has a template without CLASSNAME.
    """
    if where.endswith(".json"):
        try:
            text = Path(where).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{where}: cannot be read: {error.strerror}") from error
    elif where in names():
        text = (files("pathor1.clip") / "prompts" / f"{where}.json").read_text(encoding="utf-8")
    else:
        raise DataError(f"prompts {where!r}: none of {', '.join(names())}, and no .json file")
    try:
        found: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    return _checked(where, found)


def _checked(where: str, found: Any) -> Prompts:
    entry = next(iter(found.values()), None) if isinstance(found, dict) else None
    if not isinstance(entry, dict) or not {"classnames", "templates"} <= entry.keys():
        raise DataError(f'{where}: no prompts; the layout is {{"0": {{"classnames": {{...}}, "templates": [...]}}}}')
    if len(found) > 1:
        raise DataError(f"{where}: {len(found)} sets of prompts, where one is needed; give one a file")
    classes, templates = entry["classnames"], entry["templates"]
    if not isinstance(classes, dict) or len(classes) < 2:
        raise DataError(f"{where}: fewer than two classes")
    for name, synonyms in classes.items():
        if not _texts(synonyms):
            raise DataError(f"{where}: class {name!r} needs a list of one or more names")
    if not _texts(templates):
        raise DataError(f"{where}: templates is no list of one or more sentences")
    if without := [template for template in templates if PLACE not in template]:
        raise DataError(f"{where}: template {without[0]!r} has no {PLACE}, where the class belongs")
    return Prompts(classes={name: tuple(synonyms) for name, synonyms in classes.items()}, templates=tuple(templates))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)
