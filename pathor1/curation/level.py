"""Stage `level`: three clusters in each subfield, on joint embeddings of picture and caption.

It makes clusters and no levels. A reviewer looks at its page, names them in the file that it writes, and the stage
`reason` reads the names (`level.names`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pathor1 import files
from pathor1.checkpoints import model_of
from pathor1.curation import clusters
from pathor1.curation.by_part import ByPart, by_part, rows_with
from pathor1.curation.embedding import Embed
from pathor1.curation.made import Made, finished
from pathor1.curation.packages import versions
from pathor1.curation.recipe import CurationRecipe
from pathor1.curation.recipe_samples import Level
from pathor1.curation.schemas_samples import LEVEL
from pathor1.curation.stage import Card, Dropped, Inputs, Row, WholeStage
from pathor1.errors import DataError, RecipeError
from pathor1.evaluation.answers import weights

_EMBEDDINGS = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32()))])
# Of each cluster so many items are shown.
_EXAMPLES = 5


class LevelStage(WholeStage):
    """Items with a subfield -> their cluster."""

    name: ClassVar[str] = "level"
    version: ClassVar[int] = 1
    inputs: ClassVar[tuple[str, ...]] = ("panels", "subfield")
    schema: ClassVar[pa.Schema] = LEVEL

    def __init__(self, recipe: CurationRecipe) -> None:
        super().__init__(recipe)
        if recipe.level is None:
            raise RecipeError("the stage level needs the table [level], with a model; docs/curation.md has one")
        self.own: Level = recipe.level

    def settings(self) -> Mapping[str, Any]:
        """What the clusters depend on, weights of a folder among them: not their names."""
        own = self.own.model_dump(exclude={"names", "batch_size"})
        return {**own, "weights_files": weights(model_of(self.own.model)), "seed": self.recipe.seed}

    def tools(self) -> Mapping[str, str]:
        return versions("open_clip_torch", "scikit-learn", "torch")

    def make(self, inputs: Inputs, work: Path) -> Iterator[Row | Dropped]:
        from pathor1.ray_cluster import ray_cluster

        own = self.own
        with ray_cluster({}, log_to_driver=False):
            todo = ByPart(
                make=Embed,
                arguments=(own.model, own.checkpoint, own.picture_weight, own.batch_size, "panel_caption"),
                columns=("id", "image", "panel_caption"),
                schema=_EMBEDDINGS,
                workers=self.recipe.workers,
                gpu=True,
            )
            paths = by_part(inputs["panels"], work / "embeddings", todo, name="level")
        subfields = {row["id"]: row["subfield"] for row in inputs["subfield"].read(["id", "subfield"])}
        embeddings = _by_subfield(paths, subfields)
        for id_ in sorted(subfields.keys() - {id_ for ids, _ in embeddings.values() for id_ in ids}):
            yield Dropped(where=id_, reason="picture", detail="its picture cannot be read")
        rows: list[Row] = []
        for subfield in sorted(embeddings):
            ids, vectors = embeddings.pop(subfield)
            try:
                found = clusters.cluster(ids, vectors, seed=self.recipe.seed)
            except DataError as error:  # of a rare subfield a library may have two items
                yield from (
                    Dropped(where=id_, reason="few of its subfield", detail=f"{subfield}: {error}") for id_ in ids
                )
                continue
            for id_, label, distance in zip(ids, found.labels.tolist(), found.distances.tolist(), strict=True):
                rows.append({"id": id_, "subfield": subfield, "cluster": label, "distance": distance})
        if rows:
            self._write_blank(rows, inputs["panels"])
        yield from rows

    def _write_blank(self, rows: Sequence[Row], panels: Made) -> None:
        """The file in which the reviewer names these clusters; one that is there may be filled in already."""
        path = blank_path(self.recipe, rows)
        if not path.exists():
            near = nearest(rows)
            shown = {id_ for ids in near.values() for id_ in ids}
            captions = {row["id"]: row["panel_caption"] for row in rows_with(panels, shown, ["id", "panel_caption"])}
            examples = {key: [captions[id_] for id_ in ids] for key, ids in near.items()}
            files.write(path, clusters.blank(_digest(rows), examples))
        print(f"level: look at the review page, name the clusters in {path}, set level.names to it", flush=True)

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        """The items nearest to the centre of each cluster."""
        rows = list(made.read())
        sizes = Counter((row["subfield"], row["cluster"]) for row in rows)
        titles = {
            id_: f"{key[0]}, cluster {key[1]} of {sizes[key]:,}" for key, ids in nearest(rows).items() for id_ in ids
        }
        shown = [
            Card(
                title=titles[panel["id"]],
                picture=panel["image"],
                facts=[("item", panel["id"]), ("caption", panel["panel_caption"][:300])],
            )
            for panel in rows_with(inputs["panels"], titles, ["id", "image", "panel_caption"])
        ]
        yield from sorted(shown, key=lambda card: card.title)


def _by_subfield(
    paths: Sequence[Path], subfields: Mapping[str, str]
) -> dict[str, tuple[list[str], npt.NDArray[np.float32]]]:
    """subfield -> ids of its items, and their embeddings [items, dimensions]."""
    ids: defaultdict[str, list[str]] = defaultdict(list)
    vectors: defaultdict[str, list[npt.NDArray[np.float32]]] = defaultdict(list)
    for path in paths:
        table = pq.read_table(path)
        if not table.num_rows:
            continue
        of_part = table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        for id_, vector in zip(table["id"].to_pylist(), of_part, strict=True):
            if id_ in subfields:
                ids[subfields[id_]].append(id_)
                vectors[subfields[id_]].append(vector)
    return {subfield: (ids[subfield], np.stack(vectors.pop(subfield))) for subfield in ids}


def nearest(rows: Iterable[Row]) -> dict[tuple[str, int], list[str]]:
    """(subfield, cluster) -> the items nearest to its centre."""
    found: defaultdict[tuple[str, int], list[tuple[float, str]]] = defaultdict(list)
    for row in rows:
        found[row["subfield"], row["cluster"]].append((row["distance"], row["id"]))
    return {key: [id_ for _, id_ in sorted(items)[:_EXAMPLES]] for key, items in found.items()}


def blank_path(recipe: CurationRecipe, rows: Iterable[Row]) -> Path:
    """The file of names for these clusters: others have a file of their own."""
    return recipe.folder / f"level_names-{_digest(rows)}.toml"


def _digest(rows: Iterable[Row]) -> str:
    return clusters.digest({row["id"]: row["cluster"] for row in rows})


def level_names(recipe: CurationRecipe) -> dict[tuple[str, int], str]:
    """(subfield, cluster) -> level, by the reviewer's names for the clusters of the finished stage.

    Raises RecipeError where there are none for these clusters, RunError where the stage is not finished.
    """
    rows = list(finished(recipe.folder, LevelStage.name).read(["id", "subfield", "cluster"]))
    names = recipe.level.names if recipe.level else None
    if names is None:
        raise RecipeError(f"level.names is not set: name the clusters in {blank_path(recipe, rows)}")
    return clusters.read_names(Path(names), _digest(rows), sorted({row["subfield"] for row in rows}))


def levels(made: Made, names: Mapping[tuple[str, int], str]) -> dict[str, tuple[str, str]]:
    """id -> subfield and level."""
    rows = made.read(["id", "subfield", "cluster"])
    return {row["id"]: (row["subfield"], names[row["subfield"], row["cluster"]]) for row in rows}
