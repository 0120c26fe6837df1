"""Stage `assemble`: the sets as files of samples, without near-duplicates and without what a benchmark asks.

Dropped are, in this order: what is near a benchmark's sample, by picture or by text; questions for RL on nearly the
same picture as another; samples of the supervised stage on nearly the same picture as a question for RL; and of those
on nearly the same pictures all but one of each task whose texts are near, too.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pathor1.curation.by_part import ByPart, by_part, rows_of, rows_with
from pathor1.curation.drafts import Draft, Round
from pathor1.curation.made import Made
from pathor1.curation.near_texts import Texts, similarity, words
from pathor1.curation.packages import versions
from pathor1.curation.reserve import share
from pathor1.curation.schemas_samples import ASSEMBLE
from pathor1.curation.stage import Card, Dropped, Inputs, Row, WholeStage
from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.data.near_pictures import Hashes, HashGroup, array, near_pairs, nearest, picture_hash
from pathor1.data.row_groups import expand, fingerprint, row_groups
from pathor1.errors import DataError
from pathor1.evaluation.progress import Progress
from pathor1.files import replacing
from pathor1.prompts import question_text
from pathor1.samples import Sample, read, write

_HASHES = pa.schema([("id", pa.string()), ("hash", pa.uint64())])
# Samples of a file: a row of 300 KB makes it 3 GB.
FILE = 10_000
SETS = ("sft", "rl")


class AssembleStage(WholeStage):
    """Drafts and questions -> `sft/` and `rl/`, folders of files of samples."""

    name: ClassVar[str] = "assemble"
    version: ClassVar[int] = 1
    inputs: ClassVar[tuple[str, ...]] = ("panels", "quality", "questions")
    schema: ClassVar[pa.Schema] = ASSEMBLE

    def settings(self) -> Mapping[str, Any]:
        own = self.recipe.assemble
        digest = fingerprint(row_groups(expand(own.benchmarks))).digest if own.benchmarks else ""
        return {**own.model_dump(), "benchmarks_digest": digest, "seed": self.recipe.seed}

    def tools(self) -> Mapping[str, str]:
        return versions("datasketch")

    def make(self, inputs: Inputs, work: Path) -> Iterator[Row | Dropped]:
        from pathor1.ray_cluster import ray_cluster

        own = self.recipe.assemble
        with ray_cluster({}, log_to_driver=False):
            todo = ByPart(
                make=Hash,
                arguments=(),
                columns=("id", "image"),
                schema=_HASHES,
                workers=self.recipe.workers,
            )
            paths = by_part(inputs["panels"], work / "hashes", todo, name="assemble")
            known = _hashed(own.benchmarks, self.recipe.workers) if own.benchmarks else ([], [])
        hashes = {row["id"]: row["hash"] for row in rows_of(paths)}
        rows = [*_questions(inputs["questions"]), *_drafts(inputs["quality"])]
        rows.sort(key=lambda row: (row["set"] == "sft", share(self.recipe.seed, "assemble", row["id"]), row["id"]))
        why = self._why_not(rows, hashes, known)
        kept = [row for row in rows if row["id"] not in why]
        for row in kept:
            apart = row["set"] == "rl" and share(self.recipe.seed, "val", row["item"]) < own.held_out
            row["split"] = "val" if apart else "train"
        self._write(kept, inputs)
        yield from (Dropped(where=id_, reason=reason, detail=detail) for id_, (reason, detail) in why.items())
        for row in kept:
            yield {name: row[name] for name in ASSEMBLE.names}

    def _why_not(
        self, rows: Sequence[Row], hashes: Mapping[str, int], known: tuple[list[str], list[int]]
    ) -> dict[str, tuple[str, str]]:
        """id -> why it is dropped, and beside which other. known: benchmarks' ids, and a hash for each."""
        own = self.recipe.assemble
        why: dict[str, tuple[str, str]] = {
            row["id"]: ("picture", "its picture cannot be read") for row in rows if row["item"] not in hashes
        }
        left = [row for row in rows if row["id"] not in why]
        if own.benchmarks:
            why |= _leaks(left, hashes, known, Texts(_texts(own.benchmarks), own.text_similarity), own.picture_distance)
        rl = [row for row in left if row["set"] == "rl" and row["id"] not in why]
        for later, earlier in _pairs(rl, hashes, own.picture_distance):
            if earlier["id"] not in why:
                why.setdefault(later["id"], ("near_picture", earlier["id"]))
        rl = [row for row in rl if row["id"] not in why]
        sft = [row for row in left if row["set"] == "sft" and row["id"] not in why]
        places, _ = nearest(_array(sft, hashes), _array(rl, hashes), own.picture_distance)
        for row, place in zip(sft, places.tolist(), strict=True):
            if place >= 0:
                why[row["id"]] = ("asked_in_rl", rl[place]["id"])
        sft = [row for row in sft if row["id"] not in why]
        for later, earlier in _pairs(sft, hashes, own.picture_distance):
            if later["task"] != earlier["task"] or earlier["id"] in why:
                continue
            if similarity(words(later["text"]), words(earlier["text"])) >= own.text_similarity:
                why.setdefault(later["id"], ("near_duplicate", earlier["id"]))
        return why

    def _write(self, kept: Sequence[Row], inputs: Inputs) -> None:
        """Each set as a folder of files, the pictures of its items read part by part; whole or not at all."""
        progress = Progress(self.name, total=len(kept), what="samples")
        for name in SETS:
            target = self.recipe.folder / self.name / name
            if not any(row["set"] == name for row in kept):
                shutil.rmtree(target, ignore_errors=True)  # of an earlier start
                continue
            with replacing(target) as part:
                part.mkdir()
                for split in ("train", "val"):
                    by_item: defaultdict[str, list[Row]] = defaultdict(list)
                    for row in kept:
                        if (row["set"], row["split"]) == (name, split):
                            by_item[row["item"]].append(row)
                    samples = self._samples(by_item, inputs["panels"])
                    number = 0
                    while (first := next(samples, None)) is not None:
                        some = chain([first], islice(samples, FILE - 1))
                        progress.add(write(some, part / f"{split}-{number:05d}.parquet"))
                        number += 1

    def _samples(self, by_item: Mapping[str, Sequence[Row]], panels: Made) -> Iterator[Sample]:
        if by_item:
            for panel in rows_with(panels, by_item, ["id", "image", "book", "license"]):
                for row in by_item[panel["id"]]:
                    yield sample_of(row, panel, self.recipe.assemble.license or panel["license"])

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        del inputs
        for name in SETS:
            for path in sorted((made.folder / name).glob("*.parquet")):
                for sample in islice(read(path), self.recipe.review_items):
                    facts = [(field, str(value)) for field, value in _shown(sample) if value]
                    yield Card(title=f"{name}: {sample.id}", picture=sample.images[0], facts=facts)


class Hash:
    """Rows with id and image -> their perceptual hash; a row whose picture cannot be read is left out."""

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            try:
                picture = decode(row["image"], min_pixels=1, max_pixels=LARGEST_PIXELS)
            except DataError:
                continue
            yield {"id": row["id"], "hash": picture_hash(picture)}


def sample_of(row: Mapping[str, Any], panel: Mapping[str, Any], license_: str | None) -> Sample:
    """A kept row and its picture as a sample."""
    if row["set"] == "rl":
        return Sample(
            id=row["id"],
            source=panel["book"],
            task="mcq",
            question=row["question"],
            options=tuple(row["options"]),
            answer=row["answer"],
            images=(panel["image"],),
            subfield=row["subfield"],
            split=row["split"],
            meta={"item": row["item"], "system": row["system"]},
            license=license_,
        )
    draft = Draft(task=row["task"], rounds=tuple(Round(**one) for one in row["rounds"]), options=tuple(row["options"]))
    return draft.sample(
        id_=row["id"],
        source=panel["book"],
        image=panel["image"],
        subfield=row["subfield"],
        level=row["level"],
        license_=license_,
    )


def _questions(made: Made) -> Iterator[Row]:
    for row in made.read():
        text = " ".join([row["question"], *row["options"]])
        yield {**row, "set": "rl", "task": "diagnosis", "text": text}


def _drafts(made: Made) -> Iterator[Row]:
    for row in made.read():
        said = [part for one in row["rounds"] for part in (one["question"], one["answer"])]
        yield {**row, "set": "sft", "text": " ".join([*said, *row["options"]])}


def _hashed(benchmarks: Sequence[str], workers: int | None) -> tuple[list[str], list[int]]:
    """The ids of benchmarks' samples, and the hash of each of their pictures in all turned and mirrored forms.

    Within a `ray_cluster`. Raises DataError for a picture that cannot be read: nobody could say what it leaks into.
    """
    from pathor1.data.block_source import dataset, handed_out

    reads = [HashGroup(group=group, all_forms=True) for group in row_groups(expand(benchmarks))]
    names: list[str] = []
    found: list[int] = []
    with closing(handed_out(dataset(reads, name="benchmarks", workers=workers or 2))) as tables:
        for table in tables:
            for row in table.to_pylist():
                if row["pixels"] is None:
                    raise DataError(f"{row['file']}: sample {row['id']!r} has a picture that cannot be read")
                names += [row["id"]] * len(row["hashes"])
                found += row["hashes"]
    return names, found


def _texts(benchmarks: Sequence[str]) -> Iterator[tuple[str, str]]:
    for path in expand(benchmarks):
        for sample in read(path, columns=["id", "question", "options", "answer"]):
            yield sample.id, _text_of(sample)


def _leaks(
    rows: Sequence[Row], hashes: Mapping[str, int], known: tuple[list[str], list[int]], texts: Texts, distance: int
) -> dict[str, tuple[str, str]]:
    """The rows that are near a benchmark's sample, by picture or by text."""
    names, pictures = known
    places, _ = nearest(_array(rows, hashes), array(pictures), distance)
    found: dict[str, tuple[str, str]] = {}
    for row, place in zip(rows, places.tolist(), strict=True):
        if place >= 0:
            found[row["id"]] = ("benchmark_picture", names[place])
        elif other := texts.near(row["text"]):
            found[row["id"]] = ("benchmark_text", other)
    return found


def _text_of(sample: Sample) -> str:
    """A benchmark's question as those of the rows are: an open answer is among it, a letter is not."""
    return " ".join([sample.question, *(sample.options or ()), "" if sample.options else sample.answer])


def _pairs(rows: Sequence[Row], hashes: Mapping[str, int], distance: int) -> Iterator[tuple[Row, Row]]:
    """(later, earlier) rows on nearly the same picture, by the order of the earlier and then of the later one."""
    if not rows:
        return
    values = _array(rows, hashes)
    # One number a pair, and each pair once: it comes with every band that both hashes have in common.
    found = [
        one[one < other] * len(rows) + other[one < other] for one, other, _ in near_pairs(values, values, distance)
    ]
    for pair in np.unique(np.concatenate(found)).tolist() if found else ():
        earlier, later = divmod(pair, len(rows))
        yield rows[later], rows[earlier]


def _array(rows: Sequence[Row], hashes: Mapping[str, int]) -> Hashes:
    return array([hashes[row["item"]] for row in rows])


def _shown(sample: Sample) -> list[tuple[str, Any]]:
    turns = "\n".join(f"{turn.role}: {turn.text}" for turn in sample.turns or ())
    return [
        ("question", question_text(sample)),
        ("turns", turns),
        ("reasoning", sample.explanation),
        ("answer", sample.answer),
    ]
