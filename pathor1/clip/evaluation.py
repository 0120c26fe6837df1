"""Evaluates models as a recipe says: results as JSON and as the paper's tables, in the evaluation's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pathor1 import files
from pathor1.clip import models, probe, prompts, retrieval, tables, zero_shot
from pathor1.clip.embed import Features, Row, features
from pathor1.clip.models import Encoder
from pathor1.contrastive import ClipEvaluation, ProbeSet, RetrievalSet, ZeroShotSet
from pathor1.errors import DataError, RecipeError
from pathor1.recipe import to_toml
from pathor1.samples import open_parquet

Floats = npt.NDArray[np.float32]
WHAT = ("zero_shot", "retrieval", "probe")
# Of a set's pictures, so many are shown with the texts that were found, spread over all of them.
SHOWN, FOUND = 24, 5


def evaluate(recipe: ClipEvaluation, what: str) -> str:
    """Evaluates all models on the sets of one table, `zero_shot`, `retrieval` or `probe`; returns the table's text.

    `recipe` has absolute paths (`pathor1.storage.absolute_clip_evaluation`). Results are written to
    `RUNS_DIR/NAME/eval/WHAT.json`, and features to `RUNS_DIR/NAME/features`. Raises UserError for whatever in the input
    makes it impossible; what fails for one model or set fails for all, so that no mean leaves it out.
    """
    sets: dict[str, Any] = getattr(recipe, what)
    if not sets:
        raise RecipeError(f"the recipe has no [{what}.NAME] table; docs/clip.md says what belongs there")
    if not recipe.models:
        raise RecipeError("the recipe has no [models], and there is no --model; there is nothing to evaluate")
    _check(recipe)
    found = {name: models.find(models.parse(where)) for name, where in recipe.models.items()}
    folder = Path(recipe.runs_dir) / recipe.name
    measures: dict[str, Callable[..., dict[str, Any]]] = {
        "zero_shot": _zero_shot,
        "retrieval": _retrieval,
        "probe": _probe,
    }
    results: dict[str, Any] = {}
    for name, model in found.items():
        encoder = Encoder(model, device=models.device())
        measure = _Measure(recipe, encoder, folder / "features")
        results[name] = {each: measures[what](measure, table) for each, table in sets.items()}
        _print_left_out(name, results[name])
    files.write(folder / "recipe.toml", to_toml(recipe))
    files.write(folder / "eval" / f"{what}.json", json.dumps({"models": recipe.models, "results": results}, indent=1))
    text = tables.text(what, results)
    files.write(folder / "eval" / f"{what}.txt", text + "\n")
    return text


class _Measure:
    """A model, and where its features are kept."""

    def __init__(self, recipe: ClipEvaluation, encoder: Encoder, cache: Path) -> None:
        self.recipe, self.encoder, self.cache = recipe, encoder, cache

    def features(self, patterns: Sequence[str]) -> Features:
        recipe = self.recipe
        return features(
            self.encoder,
            patterns,
            self.cache,
            batch_size=recipe.batch_size,
            threads=recipe.threads,
            encoders=recipe.encoders,
        )

    def texts(self, texts: Sequence[str]) -> Floats:
        """[n, d] of length 1; a text that comes several times is encoded once."""
        distinct = list(dict.fromkeys(texts))
        size = self.recipe.batch_size
        parts = [self.encoder.texts(distinct[start : start + size]) for start in range(0, len(distinct), size)]
        places = {text: place for place, text in enumerate(distinct)}
        return np.concatenate(parts)[[places[text] for text in texts]]


def _check(recipe: ClipEvaluation) -> None:
    """Raises UserError for prompts and files that are none, before a model is loaded."""
    from pathor1.data.row_groups import expand

    for each in recipe.zero_shot.values():
        prompts.load(each.prompts)
    tables_of: list[Any] = [*recipe.zero_shot.values(), *recipe.retrieval.values(), *recipe.probe.values()]
    for table in tables_of:
        patterns = [*getattr(table, "data", ()), *getattr(table, "train", ()), *getattr(table, "test", ())]
        for path in expand(patterns):
            open_parquet(path)


def _zero_shot(measure: _Measure, table: ZeroShotSet) -> dict[str, Any]:
    asked = prompts.load(table.prompts)
    names = list(asked.classes)
    made = measure.features(table.data)
    classes = [_label(row, table.label) for row in made.rows]
    places = [place for place, name in enumerate(classes) if name in asked.classes]
    if not places:
        some = ", ".join(sorted(set(map(str, classes)))[:5])
        raise DataError(f"{', '.join(table.data)}: no sample is of a class of {table.prompts!r}; they are of {some}")
    weights = zero_shot.classifier(asked, measure.texts)
    truth = np.asarray([names.index(str(classes[place])) for place in places])
    said = zero_shot.classify(models.unit(made.images[places]), weights)
    return {
        **asdict(zero_shot.score(said, truth, names)),
        "chance": 1 / len(names),
        "passed_over": len(classes) - len(places),
        "left_out": made.left_out,
    }


def _retrieval(measure: _Measure, table: RetrievalSet) -> dict[str, Any]:
    made = measure.features(table.data)
    places = [place for place, row in enumerate(made.rows) if row.caption is not None and _wanted(row, table.where)]
    if not places:
        which = f" of {table.where}" if table.where else ""
        raise DataError(f"{', '.join(table.data)}: no sample{which} is a caption, as retrieval needs")
    rows = [made.rows[place] for place in places]
    captions = [" ".join((row.caption or "").split()) for row in rows]
    same_text, same_image = retrieval.groups(captions), retrieval.groups([row.picture for row in rows])
    found = retrieval.retrieval(
        models.unit(made.images[places]),
        measure.texts(captions),
        same_text=same_text,
        same_image=same_image,
        device=measure.encoder.device,
    )
    told = asdict(found)
    first = told.pop("first")
    shown = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int).tolist()

    def gallery(place: int) -> dict[str, Any]:
        """A picture, and the first texts that were found, each once."""
        distinct: dict[int, int] = {}
        for other in first[place].tolist():
            distinct.setdefault(int(same_text[other]), other)
        right = (same_text == same_text[place]) | (same_image == same_image[place])
        return {
            "id": rows[place].id,
            "file": rows[place].file,
            "caption": captions[place],
            "found": [
                {"caption": captions[other], "right": bool(right[other])} for other in [*distinct.values()][:FOUND]
            ],
        }

    return {
        **told,
        "passed_over": len(made.rows) - len(rows),
        "left_out": made.left_out,
        "gallery": [gallery(place) for place in shown],
    }


def _probe(measure: _Measure, table: ProbeSet) -> dict[str, Any]:
    images, rows, left_out = _labelled(measure, table, table.train)
    classes = np.asarray([str(_label(row, table.label)) for row in rows])
    if table.test:
        test_images, test_rows, more = _labelled(measure, table, table.test)
        test_classes = np.asarray([str(_label(row, table.label)) for row in test_rows])
        left_out = left_out | more
    else:
        groups = [str(_group(row, table.group)) for row in rows]
        test = probe.split(groups, classes.tolist(), test_share=table.test_share, seed=0)
        test_images, test_classes = images[test], classes[test]
        images, classes = images[~test], classes[~test]
    fits = probe.probe(images, classes, test_images, test_classes, shots=table.shots, seeds=table.seeds)
    return {
        "fits": [asdict(fit) for fit in fits],
        "train": len(images),
        "test": len(test_images),
        "classes": sorted(set(classes.tolist())),
        "left_out": left_out,
    }


def _labelled(measure: _Measure, table: ProbeSet, patterns: Sequence[str]) -> tuple[Floats, list[Row], dict[str, str]]:
    """The features and rows of the classes that count."""
    made = measure.features(patterns)
    names = [_label(row, table.label) for row in made.rows]
    places = [
        place for place, name in enumerate(names) if name is not None and (not table.classes or name in table.classes)
    ]
    if not places:
        raise DataError(f"{', '.join(patterns)}: no sample has a class in meta.{table.label}")
    return made.images[places], [made.rows[place] for place in places], made.left_out


def _label(row: Row, key: str) -> str | None:
    value = row.meta.get(key)
    return None if value is None else str(value)


def _wanted(row: Row, where: Mapping[str, Sequence[str]]) -> bool:
    return all(_label(row, key) in values for key, values in where.items())


def _group(row: Row, key: str) -> Any:
    """What a sample belongs to; where it is not said, to itself, and the same picture is always in one group."""
    return row.meta.get(key, row.picture) if key else row.picture


def _print_left_out(name: str, results: dict[str, Any]) -> None:
    for each, result in results.items():
        if result["left_out"]:
            sample, why = next(iter(result["left_out"].items()))
            print(f"{name}, {each}: {len(result['left_out'])} samples left out, such as {sample}: {why}", flush=True)
