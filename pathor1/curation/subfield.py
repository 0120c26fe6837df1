"""Stage `subfield`: a classifier that a person corrects, round by round (Patho-R1, section 3.3).

A round trains on all labels, predicts all items, tells how right it is on held-out labels, and writes the queue of
those that the reviewer should look at. The queue, filled in, is one more file of `subfield.labels`; the same command
with `--redo` is then the next round.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1 import files
from pathor1.curation import subfield_labels as labelling
from pathor1.curation.by_part import ByPart, by_part, rows_of, rows_with
from pathor1.curation.classifier import Job, Predict, network, png, square, train
from pathor1.curation.made import Made
from pathor1.curation.packages import versions
from pathor1.curation.recipe import CurationRecipe
from pathor1.curation.recipe_samples import Subfield
from pathor1.curation.schemas_samples import SUBFIELD
from pathor1.curation.stage import Card, Dropped, Inputs, Row, WholeStage
from pathor1.errors import DataError, RecipeError

_PREDICTIONS = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("id", "predicted", "second", "caption")),
        *(pa.field(name, pa.float64()) for name in ("confidence", "margin")),
    ]
)
_LABELLED = pa.schema([("image", pa.binary()), ("place", pa.int64())])
ROUNDS = "subfield_rounds"


class SubfieldStage(WholeStage):
    """Items -> their subfield, with how sure the classifier is."""

    name: ClassVar[str] = "subfield"
    version: ClassVar[int] = 1
    inputs: ClassVar[tuple[str, ...]] = ("panels",)
    schema: ClassVar[pa.Schema] = SUBFIELD

    def __init__(self, recipe: CurationRecipe) -> None:
        super().__init__(recipe)
        if recipe.subfield is None:
            raise RecipeError("the stage subfield needs the table [subfield], with labels; docs/curation.md has one")
        self.own: Subfield = recipe.subfield

    def settings(self) -> Mapping[str, Any]:
        """All of the table but the queue's length, with digests of the labels and weights."""
        digests = {path: _digest(Path(path)) for path in [*self.own.labels, *filter(None, [self.own.weights])]}
        return {**self.own.model_dump(exclude={"queue"}), "digests": digests, "seed": self.recipe.seed}

    def tools(self) -> Mapping[str, str]:
        return versions("timm", "torch")

    def make(self, inputs: Inputs, work: Path) -> Iterator[Row | Dropped]:
        from pathor1.ray_cluster import ray_cluster

        panels = inputs["panels"]
        labels, pictures = self._labels(panels)
        held_out = {
            id_
            for id_ in labels
            if labelling.is_held_out(pictures[id_], held_out=self.own.held_out, seed=self.recipe.seed)
        }
        weights = work / "weights.safetensors"
        with ray_cluster({"RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}, log_to_driver=False):
            if not weights.exists():
                network(self.own, len(self.own.classes))  # before processes are started for it
                self._write_labelled(panels, labels, held_out, work / "labelled.parquet")
                job = Job(
                    settings=self.own,
                    classes=tuple(self.own.classes),
                    labelled=work / "labelled.parquet",
                    weights=weights,
                    seed=self.recipe.seed,
                )
                train(job, work / "ray_train")
            todo = ByPart(
                make=Predict,
                arguments=(self.own, self.own.classes, weights, "panel_caption"),
                columns=("id", "image", "panel_caption"),
                schema=_PREDICTIONS,
                workers=self.recipe.workers,
                gpu=True,
            )
            paths = by_part(panels, work / "predictions", todo, name="subfield")
        self._tell(paths, labels, held_out)
        yield from self._rows(paths, labels, pictures)

    def _labels(self, panels: Made) -> tuple[dict[str, str], dict[str, str]]:
        """The labels of items that there are, and the digest of every item's picture."""
        pictures = {row["id"]: row["image_sha256"] for row in panels.read(["id", "image_sha256"])}
        found = labelling.read_labels([Path(path) for path in self.own.labels], self.own.classes)
        labels = {id_: label for id_, label in found.items() if id_ in pictures}
        if len(labels) < len(found):
            print(f"subfield: {len(found) - len(labels)} labels are of items that are not there", flush=True)
        there = set(labels.values())
        if len(there) < 2:
            raise DataError(f"subfield.labels: {len(labels)} labels of {len(there)} classes; at least two are needed")
        return labels, pictures

    def _write_labelled(self, panels: Made, labels: Mapping[str, str], held_out: set[str], path: Path) -> None:
        place = {name: number for number, name in enumerate(self.own.classes)}
        rows: list[Row] = []
        for row in rows_with(panels, labels.keys() - held_out, ["id", "image"]):
            with contextlib.suppress(DataError):  # it is dropped with the others that cannot be read
                image = png(square(row["image"], self.own.size))
                rows.append({"image": image, "place": place[labels[row["id"]]]})
        if not rows:
            raise DataError("subfield.held_out leaves no label to train on")
        with files.replacing(path) as part:
            pq.write_table(pa.Table.from_pylist(rows, schema=_LABELLED), part)

    def _tell(self, paths: list[Path], labels: Mapping[str, str], held_out: set[str]) -> None:
        """Writes the round's figures and queue beside the stage, where the next round does not remove them."""
        predicted = {row["id"]: row["predicted"] for row in rows_of(paths) if row["id"] in labels}
        told = labelling.measure(labels, predicted, held_out & predicted.keys(), self.own.classes)
        folder = self.recipe.folder / ROUNDS
        of = hashlib.sha256(json.dumps(dict(self.settings()), sort_keys=True).encode()).hexdigest()[:16]
        number = _round(folder, of)
        queue = labelling.queue(rows_of(paths), labels, self.own.queue)
        report = {"round": number, "of": of, **asdict(told), "held_out": told.held_out, "accuracy": told.accuracy}
        files.write(folder / f"{number:03d}.json", json.dumps(report, indent=2) + "\n")
        path = folder / f"{number:03d}-queue.csv"
        if not path.exists():  # it may be half filled in
            labelling.write_queue(path, queue)
        share = "no label is held out" if told.accuracy is None else f"{told.accuracy:.1%} right of {told.held_out}"
        print(f"subfield, round {number}: {share} held-out labels\n{told.table()}\nto look at: {path}", flush=True)

    def _rows(
        self, paths: list[Path], labels: Mapping[str, str], pictures: Mapping[str, str]
    ) -> Iterator[Row | Dropped]:
        seen = set[str]()
        for row in rows_of(paths):
            id_ = row["id"]
            seen.add(id_)
            label = labels.get(id_)
            subfield = label or row["predicted"]
            if subfield not in self.own.kept:
                yield Dropped(where=id_, reason=f"is {subfield}", detail="not among subfield.kept")
                continue
            numbers = {name: row[name] for name in ("predicted", "confidence", "margin")}
            by = "label" if label else "predicted"
            yield {"id": id_, "image_sha256": pictures[id_], "subfield": subfield, "by": by, **numbers}
        for id_ in pictures.keys() - seen:
            yield Dropped(where=id_, reason="picture", detail="its picture cannot be read")

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        """Those that the classifier is least sure of first."""
        unsure = sorted(made.read(["id", "subfield", "by", "confidence", "margin"]), key=lambda row: row["margin"])
        shown = {row["id"]: row for row in unsure[: 2 * self.recipe.review_items]}
        for panel in rows_with(inputs["panels"], shown, ["id", "image", "panel_caption"]):
            row = shown[panel["id"]]
            facts = [
                ("subfield", f"{row['subfield']} ({row['by']})"),
                ("sure", f"{row['confidence']:.2f}, {row['margin']:.2f} before the second"),
                ("caption", panel["panel_caption"][:300]),
            ]
            yield Card(title=panel["id"], picture=panel["image"], facts=facts, flagged=row["by"] == "predicted")


def _round(folder: Path, of: str) -> int:
    """The number of the round with these settings and labels, from 1; a new one is behind the last."""
    last = 0
    for path in sorted(folder.glob("[0-9][0-9][0-9].json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["of"] == of:
            return int(found["round"])
        last = max(last, int(found["round"]))
    return last + 1


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
