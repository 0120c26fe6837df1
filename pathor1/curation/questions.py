"""Stage `questions`: multiple-choice questions on diagnoses, for RL (Patho-R1, section 3.4).

They are made of the pictures that were reserved for them: none of them, nor a copy of one, was written about for the
supervised stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from pathor1.curation import diagnoses
from pathor1.curation.by_part import rows_with
from pathor1.curation.made import Made
from pathor1.curation.reason import of_panel, reason_of, sentences
from pathor1.curation.reserve import is_reserved, share
from pathor1.curation.sampling import Candidate, ask, choose
from pathor1.curation.schemas_samples import FACTS_REQUESTS, QUESTIONS
from pathor1.curation.stage import Card, Dropped, Inputs, Row, WholeStage
from pathor1.curation.writing import Requests, key, replies_in, replies_store, write_replies
from pathor1.errors import DataError
from pathor1.samples import LETTERS

# So many items a question are asked for their diagnosis: many captions give none.
CANDIDATES = 4
# None of them says more than what kind of picture it is.
WORDINGS = {
    "histopathology": (
        "Which diagnosis does this section show?",
        "Which diagnosis fits this histological picture best?",
    ),
    "gross": ("Which diagnosis does this specimen show?", "Which diagnosis fits the gross appearance best?"),
    "ihc": ("In which lesion was this stain made?", "Which diagnosis does this immunohistochemical picture belong to?"),
    "cytology": ("Which diagnosis do these cells support?", "Which diagnosis fits this cytological picture best?"),
    "fish": ("In which lesion is this pattern of signals found?", "Which diagnosis does this FISH picture belong to?"),
}


class QuestionsStage(WholeStage):
    """Reserved items -> questions with options and answer."""

    name: ClassVar[str] = "questions"
    version: ClassVar[int] = 1
    inputs: ClassVar[tuple[str, ...]] = ("panels", "references", "subfield", "quality")
    schema: ClassVar[pa.Schema] = QUESTIONS

    def settings(self) -> Mapping[str, Any]:
        writer = self._writer()
        named = {"url": writer.url, "model": writer.model, "prompt": diagnoses.prompt("", [])}
        return {**self.recipe.questions.model_dump(), **named, "seed": self.recipe.seed}

    def _writer(self) -> Any:
        own, writer = self.recipe.questions, reason_of(self.recipe)
        # Facts are short, and the likeliest reply is the one that is wanted.
        changed: dict[str, Any] = {
            "temperature": 0.0,
            "expected_tokens": 60,
            "max_tokens": min(writer.max_tokens, 2048),
        }
        if own.facts_url or own.facts_model:
            changed |= {"url": own.facts_url or writer.url, "model": own.facts_model or writer.model}
        return writer.model_copy(update=changed)

    def make(self, inputs: Inputs, work: Path) -> Iterator[Row | Dropped]:
        own, seed = self.recipe.questions, self.recipe.seed
        subfields = {row["id"]: row["subfield"] for row in inputs["subfield"].read(["id", "subfield"])}
        requests = Requests.write(work / "requests.parquet", self._requests(inputs, subfields), FACTS_REQUESTS)
        store = replies_store(self.recipe.folder, self.name, requests, self._writer())
        print(f"questions: {write_replies(self._writer(), requests, store, name='questions')}", flush=True)
        pool: list[Candidate] = []
        for row in sorted(replies_in(store, requests), key=lambda row: row["id"]):
            try:
                facts = diagnoses.read(row["reply"], row["text"])
            except diagnoses.NoFactError as error:
                yield Dropped(where=row["id"], reason=str(error), detail=row["reply"][:300])
                continue
            about = {name: row[name] for name in ("id", "image_sha256", "subfield", "text")}
            pool.append(Candidate(**about, system=facts.system, diagnosis=facts.diagnosis))
        chosen = choose(pool, own.count, subfields=Counter(subfields.values()), by_system=own.by_system, seed=seed)
        asked = ask(chosen, pool, options=own.options, seed=seed)
        _check_apart({each.item.id for each in asked}, {each.item.image_sha256 for each in asked}, inputs["quality"])
        if len(asked) < own.count:
            print(f"questions: {len(asked):,} of {own.count:,}: no more captions give a diagnosis", flush=True)
        have = {each.item.id for each in asked}
        for item in chosen:
            if item.id not in have:
                yield Dropped(where=item.id, reason="few_options", detail=f"for {item.diagnosis}")
        for each in asked:
            item = each.item
            wordings = WORDINGS[item.subfield]
            yield {
                "id": f"{item.id}#diagnosis",
                "item": item.id,
                "image_sha256": item.image_sha256,
                "subfield": item.subfield,
                "system": item.system,
                "question": wordings[int(share(seed, "wording", item.id) * len(wordings))],
                "options": list(each.options),
                "answer": each.answer,
            }

    def _requests(self, inputs: Inputs, subfields: Mapping[str, str]) -> Iterator[Row]:
        """The reserved items, in an order that the seed gives, `CANDIDATES` for each question."""
        own, seed = self.recipe.questions, self.recipe.seed
        said = sentences(inputs["references"])
        panels = [
            row
            for row in inputs["panels"].read(["id", "figure", "panel", "panel_caption", "image_sha256"])
            if row["id"] in subfields
            and row["panel_caption"].strip()
            and is_reserved(row["image_sha256"], reserved=own.reserved, seed=seed)
        ]
        panels.sort(key=lambda row: (share(seed, "candidate", row["id"]), row["id"]))
        for panel in panels[: CANDIDATES * own.count]:
            texts = of_panel(said, panel)
            prompt = diagnoses.prompt(panel["panel_caption"], texts)
            yield {
                "key": key(panel["id"], prompt),
                "id": panel["id"],
                "image_sha256": panel["image_sha256"],
                "subfield": subfields[panel["id"]],
                "text": "\n".join([panel["panel_caption"], *texts]),
                "prompt": prompt,
            }

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        asked = {row["item"]: row for row in made.read()}
        for panel in rows_with(inputs["panels"], asked, ["id", "image", "panel_caption"]):
            row = asked[panel["id"]]
            options = zip(LETTERS, row["options"], strict=False)
            facts = [("question", row["question"]), *options, ("answer", row["answer"]), ("system", row["system"])]
            facts.append(("caption", panel["panel_caption"][:300]))
            yield Card(title=f"{panel['id']}: {row['subfield']}", picture=panel["image"], facts=facts)


def _check_apart(items: set[str], pictures: set[str], written: Made) -> None:
    """Raises DataError where a question's item or picture is among those of the supervised stage."""
    for row in written.read(["item", "image_sha256"]):
        if row["item"] in items or row["image_sha256"] in pictures:
            raise DataError(
                f"{row['item']}: is among the samples of the supervised stage and among the questions; run the stage "
                "reason again, with the present questions.reserved and seed"
            )
