"""Stage `quality`: the replies that keep all rules, and of the others which rule they break."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1.curation.by_part import rows_with
from pathor1.curation.made import DROPPED, Made
from pathor1.curation.quality import RULE_NAMES, Limits, Written, findings, to_look_at
from pathor1.curation.schemas_samples import QUALITY
from pathor1.curation.stage import Card, Chunk, Dropped, Inputs, Row, Stage, Work

# Row groups of the stage before in a chunk.
GROUPS = 2


class QualityStage(Stage):
    """Replies -> drafts of samples."""

    name: ClassVar[str] = "quality"
    version: ClassVar[int] = 2
    inputs: ClassVar[tuple[str, ...]] = ("reason",)
    schema: ClassVar[pa.Schema] = QUALITY

    def settings(self) -> Mapping[str, Any]:
        return self.recipe.quality.model_dump(exclude={"look_at"})

    def chunks(self, inputs: Inputs) -> Iterator[Chunk | Dropped]:
        for part in inputs["reason"].parts:
            groups = pq.ParquetFile(part.path).metadata
            bounds = [*range(0, groups.num_row_groups, GROUPS), groups.num_row_groups]
            for start, end in pairwise(bounds):
                rows = sum(groups.row_group(index).num_rows for index in range(start, end))
                payload = (str(part.path), start, end)
                yield Chunk(key=f"{part.key}-{start:06d}", made_of=f"{part.sha256} {end}", items=rows, payload=payload)

    def open(self) -> Work:
        limits = Limits(**self.recipe.quality.model_dump(exclude={"look_at"}))

        def work(chunk: Chunk) -> Iterable[Row | Dropped]:
            path, start, end = chunk.payload
            with pq.ParquetFile(path) as file:
                for index in range(start, end):
                    for row in file.read_row_group(index).to_pylist():
                        yield judged(row, limits)

        return work

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        """For a person to check: some of those kept, and some that each rule drops, the same ones each time."""
        reasons = {row["id"]: "kept" for row in made.read(["id"])}
        with (made.folder / DROPPED).open(encoding="utf-8") as lines:
            reasons |= {one["where"]: one["detail"] for one in map(json.loads, lines)}
        broken = {id_: [rule for rule in RULE_NAMES if _breaks(why, rule)] for id_, why in reasons.items()}
        chosen = to_look_at(broken, each=self.recipe.quality.look_at, seed=self.recipe.seed)
        named = {id_: name for name, ids in chosen.items() for id_ in ids}
        for row in rows_with(inputs["reason"], named, ["id", "caption", "reply"]):
            name = named[row["id"]]
            facts = [("why", reasons[row["id"]]), ("caption", row["caption"]), ("reply", row["reply"])]
            yield Card(title=f"{name}: {row['id']}", facts=facts, flagged=name != "kept")


def _breaks(detail: str, rule: str) -> bool:
    """Whether a rule is among what `judged` has told of a reply."""
    return detail.startswith(f"{rule}: ") or f"; {rule}: " in detail


def judged(row: Mapping[str, Any], limits: Limits) -> Row | Dropped:
    """A row of replies as a draft, or what is wrong with it: the first rule that it breaks, and all in the detail."""
    draft, found = findings(_written(row), limits)
    if found or draft is None:
        detail = "; ".join(f"{each.rule}: {each.reason}" for each in found)
        return Dropped(where=row["id"], reason=found[0].rule, detail=detail)
    about = {name: row[name] for name in ("id", "item", "image_sha256", "task", "subfield", "level", "caption")}
    rounds = [{"question": one.question, "reasoning": one.reasoning, "answer": one.answer} for one in draft.rounds]
    return {**about, "rounds": rounds, "options": list(draft.options)}


def _written(row: Mapping[str, Any]) -> Written:
    return Written(
        task=row["task"],
        reply=row["reply"],
        caption=row["caption"],
        references=tuple(row["references"]),
        finish=row["finish"],
    )
