"""The folder of an evaluation of CLIP models -> `report.html`: tables, confusion matrices, boxes, and a gallery."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pathor1 import files
from pathor1.clip import tables
from pathor1.errors import DataError, RecipeError, RunError
from pathor1.report import pictures, steps
from pathor1.report.boxes import boxes
from pathor1.report.page import render
from pathor1.report.pictures import Thumbnail
from pathor1.report.steps import Figure
from pathor1.runs import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """A model on a set. rows: a true class, its pictures, and of each said class how many, and their share."""

    model: str
    name: str
    classes: Sequence[str]
    rows: Sequence[tuple[str, int, Sequence[tuple[int, float]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A picture, its caption, and the captions that were found for it, right or wrong. picture: None = not there."""

    id: str
    picture: Thumbnail | None
    caption: str
    found: Sequence[tuple[str, bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that the page shows. tables: title and rows, the first the head's; curves: of models that are runs."""

    name: str
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]]
    confusions: Sequence[Confusion]
    probes: Sequence[tuple[str, Markup, Sequence[tuple[str, str]]]]
    galleries: Sequence[tuple[str, str, Sequence[Asked]]]
    curves: Sequence[tuple[str, Sequence[Figure]]]
    problems: Sequence[str]


def is_evaluation(folder: Path) -> bool:
    """Whether a folder is that of an evaluation of CLIP models."""
    return any((folder / "eval" / f"{what}.json").is_file() for what in ("zero_shot", "retrieval", "probe"))


def write(folder: Path) -> Path:
    """Writes the report of an evaluation's folder, and returns its path.

    Raises RunError for a folder that has none, and for results that are malformed. Pictures that are gone leave gaps.
    """
    path = RunFolder(folder).report
    files.write(path, render("clip.html.jinja", page=collect(folder), script=""))
    return path


def collect(folder: Path) -> Page:
    """Reads what the page shows. Raises the errors of `write`."""
    found = {what: _read(folder / "eval" / f"{what}.json") for what in ("zero_shot", "retrieval", "probe")}
    results: dict[str, Mapping[str, Any]] = {what: each["results"] for what, each in found.items() if each}
    if not results:
        raise RunError(f"{folder}: no evaluation of CLIP models; `pathor1 clip zero-shot RECIPE` makes one")
    models: dict[str, str] = {name: where for each in found.values() if each for name, where in each["models"].items()}
    problems: list[str] = []
    galleries = _galleries(results.get("retrieval", {}), problems)
    return Page(
        name=folder.name,
        tables=_tables(results),
        confusions=_confusions(results.get("zero_shot", {})),
        probes=_probes(results.get("probe", {})),
        galleries=galleries,
        curves=[(name, figures) for name, where in models.items() if (figures := _curves(where))],
        problems=problems,
    )


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"models", "results"} <= found.keys():
            raise ValueError("no models or no results")
    except (ValueError, AttributeError) as error:
        raise RunError(f"{path}: malformed ({error}); evaluate again") from error
    return found


def _tables(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    made: list[tuple[str, list[list[str]]]] = []
    for what, of_models in results.items():
        sets = list(next(iter(of_models.values())))
        if what == "zero_shot":
            made.append(("Zero-shot accuracy, percent with 95 % intervals", tables.zero_shot(of_models, sets)))
        elif what == "retrieval":
            title = "Retrieval on {}: Recall@k in percent, pictures to texts / texts to pictures"
            made += [(title.format(name), tables.retrieval(of_models, name)) for name in sets]
        else:
            title = "Linear probe on {}: accuracy in percent, median (lowest to highest)"
            made += [(title.format(name), tables.probe(of_models, name)) for name in sets]
    return made


def _confusions(results: Mapping[str, Any]) -> list[Confusion]:
    made = []
    for model, sets in results.items():
        for name, found in sets.items():
            rows = [
                (true, sum(counts), [(count, count / max(1, sum(counts))) for count in counts])
                for true, counts in zip(found["classes"], found["confusion"], strict=True)
            ]
            made.append(Confusion(model=model, name=name, classes=found["classes"], rows=rows))
    return made


def _probes(results: Mapping[str, Any]) -> list[tuple[str, Markup, list[tuple[str, str]]]]:
    """A figure for each set: its title, the boxes, and colour and name of each model."""
    made = []
    for name in next(iter(results.values()), {}):
        groups: dict[str, dict[str, list[float]]] = {}
        for model, sets in results.items():
            by_shots: dict[str, list[float]] = {}
            for fit in sets[name]["fits"]:
                by_shots.setdefault(str(fit["shots"]), []).append(fit["accuracy"])
            groups[model] = by_shots
        figure = boxes(name, "accuracy", groups, "training pictures of each class")
        made.append((name, figure, [(f"c{place % 8}", model) for place, model in enumerate(groups)]))
    return made


def _galleries(results: Mapping[str, Any], problems: list[str]) -> list[tuple[str, str, list[Asked]]]:
    made = []
    for model, sets in results.items():
        for name, found in sets.items():
            rows = found["gallery"]
            shown, gone = pictures.find(sorted({row["file"] for row in rows}), {row["id"] for row in rows})
            problems += [line for line in gone if line not in problems]
            made.append((model, name, [_asked(row, shown) for row in rows]))
    return made


def _asked(row: Mapping[str, Any], shown: Mapping[str, pictures.Found]) -> Asked:
    picture = None
    if row["id"] in shown and shown[row["id"]].images:
        try:
            picture = pictures.thumbnail(shown[row["id"]].images[0])
        except DataError:
            picture = None
    found = [(each["caption"], each["right"]) for each in row["found"]]
    return Asked(id=row["id"], picture=picture, caption=row["caption"], found=found)


def _curves(where: str) -> list[Figure]:
    """The curves of a model that is a run's; none for any other."""
    from pathor1.contrastive import is_clip

    folder = RunFolder(Path(where))
    try:
        if not folder.recipe.is_file() or not is_clip(folder.recipe):
            return []
        return list(steps.figures(steps.read(folder.metrics), steps.CLIP))
    except (RecipeError, RunError):
        return []
