"""Stage `reason`: a language model writes samples from captions and what the book says of a figure, text alone.

Patho-R1 found that vision-language models wrote no better samples when they were shown the picture (section 3.3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from pathor1.curation import reasoning_prompts
from pathor1.curation.level import level_names, levels
from pathor1.curation.made import Made
from pathor1.curation.recipe import CurationRecipe
from pathor1.curation.recipe_samples import Reason
from pathor1.curation.reserve import in_turn, is_reserved, share
from pathor1.curation.schemas_samples import REASON, REASON_REQUESTS
from pathor1.curation.stage import Card, Dropped, Inputs, Row, WholeStage
from pathor1.curation.writing import Requests, key, replies_in, replies_store, write_replies
from pathor1.errors import RecipeError


class ReasonStage(WholeStage):
    """Items with subfield and level -> replies of the writer."""

    name: ClassVar[str] = "reason"
    version: ClassVar[int] = 1
    inputs: ClassVar[tuple[str, ...]] = ("panels", "references", "level")
    schema: ClassVar[pa.Schema] = REASON

    def __init__(self, recipe: CurationRecipe) -> None:
        super().__init__(recipe)
        self.own: Reason = reason_of(recipe)

    def settings(self) -> Mapping[str, Any]:
        """What the replies depend on: not how fast they are asked for, nor what they may cost."""
        named = ("url", "model", "tasks", "tasks_each", "samples", "max_tokens", "temperature", "max_model_tokens")
        names = level_names(self.recipe)
        return {
            **{name: getattr(self.own, name) for name in named},
            "prompts": reasoning_prompts.version(),
            "reserved": self.recipe.questions.reserved,
            "names": {f"{subfield} {one}": level for (subfield, one), level in sorted(names.items())},
            "seed": self.recipe.seed,
        }

    def make(self, inputs: Inputs, work: Path) -> Iterator[Row | Dropped]:
        requests = Requests.write(work / "requests.parquet", self._requests(inputs), REASON_REQUESTS)
        store = replies_store(self.recipe.folder, self.name, requests, self.own)
        print(f"reason: all replies: {write_replies(self.own, requests, store, name='reason')}", flush=True)
        for row in replies_in(store, requests):
            if row["finish"].startswith("refused"):
                yield Dropped(where=row["id"], reason="refused", detail=row["finish"])
            else:
                yield row

    def _requests(self, inputs: Inputs) -> Iterator[Row]:
        """The requests in the order of the items, each item's tasks in turn, so that each task comes as often."""
        named = levels(inputs["level"], level_names(self.recipe))
        said = sentences(inputs["references"])
        seed, reserved = self.recipe.seed, self.recipe.questions.reserved
        panels = [
            row
            for row in inputs["panels"].read(["id", "figure", "panel", "panel_caption", "image_sha256"])
            if row["id"] in named
            and row["panel_caption"].strip()
            and not is_reserved(row["image_sha256"], reserved=reserved, seed=seed)
        ]
        panels.sort(key=lambda row: (share(seed, "reason", row["id"]), row["id"]))
        turns: defaultdict[tuple[str, str], int] = defaultdict(int)
        count = 0
        for panel in panels:
            kind = named[panel["id"]]
            for task in in_turn(self.own.tasks, self.own.tasks_each, turn=turns[kind]):
                if count == self.own.samples:
                    return
                count += 1
                texts = of_panel(said, panel)
                prompt = reasoning_prompts.prompt(*kind, task, caption=panel["panel_caption"], references=texts)
                id_ = f"{panel['id']}#{task}"
                yield {
                    "key": key(id_, prompt),
                    "id": id_,
                    "item": panel["id"],
                    "image_sha256": panel["image_sha256"],
                    "task": task,
                    "subfield": kind[0],
                    "level": kind[1],
                    "caption": panel["panel_caption"],
                    "references": texts,
                    "prompt": prompt,
                }
            turns[kind] += 1

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        """Replies as they are; whether they are any good is the next stage's."""
        del inputs
        for row in made.read():
            facts = [("caption", row["caption"][:300]), ("reply", row["reply"][:1500])]
            yield Card(title=f"{row['item']}: {row['subfield']}, {row['level']}, {row['task']}", facts=facts)


def reason_of(recipe: CurationRecipe) -> Reason:
    """The recipe's writer. Raises RecipeError where it has none."""
    if recipe.reason is None:
        raise RecipeError("the recipe needs the table [reason], with the model that writes; docs/curation.md has one")
    return recipe.reason


def sentences(references: Made) -> dict[str, list[tuple[list[str], str]]]:
    """figure -> for each sentence that refers to it the panels that it names, none = all, and the sentence."""
    found: defaultdict[str, list[tuple[list[str], str]]] = defaultdict(list)
    for row in references.read(["figure", "panels", "sentence"]):
        found[row["figure"]].append((row["panels"], row["sentence"]))
    return found


def of_panel(said: Mapping[str, Sequence[tuple[Sequence[str], str]]], panel: Mapping[str, Any]) -> list[str]:
    """The sentences of a panel: those that name it, and those that name the figure alone; each once."""
    return list(
        dict.fromkeys(
            sentence for panels, sentence in said.get(panel["figure"], ()) if not panels or panel["panel"] in panels
        )
    )
