"""From panels to training sets: every stage from subfields on, in one chain, with real models and on real Ray."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from curated import Library, Sentences, recipe, small_clip, subfield_of, writer
from PIL import Image, ImageOps
from servers import Server, serving

from pathor1.curation.made import finished
from pathor1.curation.recipe import CurationRecipe
from pathor1.curation.running import run, run_stage
from pathor1.data.checking import check
from pathor1.errors import RecipeError
from pathor1.prompts import taught_messages
from pathor1.samples import Sample, read, write

pytestmark = pytest.mark.timeout(600)
CLASSES = ["histopathology", "gross", "ihc", "cytology", "fish", "other"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(writer) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library, its references, a tiny open_clip model, the first labels, and a benchmark with one of its pictures."""
    folder = tmp_path_factory.mktemp("curation")
    small_clip(folder / "clip")
    made = run_stage(Library(recipe(folder)), recipe(folder))
    run_stage(Sentences(recipe(folder)), recipe(folder))
    panels = list(made.read(["id", "image"]))
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "label"])
        rows.writerows([row["id"], subfield_of(row["id"])] for row in panels if row["id"].endswith(("1", "4", "7")))
    leaked = next(row for row in panels if row["id"] == "book/gross/3")
    mirrored = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(leaked["image"]))).save(mirrored, "PNG")
    image = mirrored.getvalue()
    bench = Sample(id="bench/1", source="b", task="open", question="What is it?", answer="x", images=(image,))
    write([bench], folder / "bench.parquet")
    return folder


def full(folder: Path, server: Server, *, reviewed: bool = False) -> CurationRecipe:
    labels = ["labels.csv", "reviewed.csv"] if reviewed else ["labels.csv"]
    tables: dict[str, Any] = {
        "subfield": {
            "labels": [str(folder / name) for name in labels],
            "classes": CLASSES,
            "model": "test_efficientnet",
            "size": 64,
            "epochs": 25,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "held_out": 0.3,
            "queue": 10,
        },
        "level": {"model": str(folder / "clip"), "names": str(folder / "names.toml")},
        "reason": {"url": server.url, "model": "m", "tasks_each": 2, "concurrency": 4, "retries": 0},
        "questions": {"count": 12, "reserved": 0.3, "by_system": ["gross"]},
        "assemble": {"benchmarks": [str(folder / "bench.parquet")], "held_out": 0.2},
    }
    return recipe(folder, **tables)


@pytest.mark.usefixtures("cluster")
def test_the_whole_chain(folder: Path, server: Server) -> None:
    books = subfields(full(folder, server), folder, server)
    levels(books, folder)
    written(books, server)
    asked(books)
    sets(books)


def subfields(books: CurationRecipe, folder: Path, server: Server) -> CurationRecipe:
    """Two rounds: a classifier on the first labels, and one on those that a person has given behind it."""
    made = run("subfield", books)
    rounds = folder / "books/subfield_rounds"
    first = json.loads((rounds / "001.json").read_text())
    assert first["accuracy"] is not None
    assert sum(map(sum, first["confusion"])) == first["held_out"] > 5
    queue = list(csv.DictReader((rounds / "001-queue.csv").open()))
    assert len(queue) == 10
    assert [float(row["margin"]) for row in queue] == sorted(float(row["margin"]) for row in queue)
    labelled = {row["id"] for row in csv.DictReader((folder / "labels.csv").open())}
    assert not labelled & {row["id"] for row in queue}
    assert {row["id"] for row in made.read() if row["by"] == "label"} == labelled
    assert "other-book/broken" not in {row["id"] for row in made.read()}
    assert made.dropped["picture"] == 1
    # The reviewer calls the queue's first item what is not kept, and labels all others right.
    panels = finished(folder / "books", "panels")
    first_of_queue = queue[0]["id"]
    with (folder / "reviewed.csv").open("w", newline="") as file:
        everything = csv.writer(file)
        everything.writerow(["id", "label"])
        for row in panels.read(["id"]):
            everything.writerow([row["id"], "other" if row["id"] == first_of_queue else subfield_of(row["id"])])
    reviewed = full(folder, server, reviewed=True)
    made = run("subfield", reviewed, redo=True)
    second = json.loads((rounds / "002.json").read_text())
    told = sum(second["trained_on"].values()) + second["held_out"]
    assert panels.rows - 1 <= told <= panels.rows, "all labels; one is of a picture that cannot be read"
    assert second["accuracy"] > 0.5, "five kinds of pictures that a small network tells apart; chance is 0.2"
    assert made.dropped == {"is other": 1, "picture": 1}
    assert made.rows == panels.rows - 2
    found = {row["id"]: row["subfield"] for row in made.read()}
    assert first_of_queue not in found
    assert all(found[id_] == subfield_of(id_) for id_ in found), "labels win over predictions"
    assert (rounds / "001-queue.csv").exists(), "the next round does not take the reviewer's work away"
    return reviewed


def levels(books: CurationRecipe, folder: Path) -> None:
    made = run("level", books)
    rows = {row["id"]: (row["subfield"], row["cluster"]) for row in made.read()}
    assert set(rows.values()) == {(name, one) for name in CLASSES[:5] for one in range(3)}
    for name in CLASSES[:5]:
        sizes = Counter(cluster for subfield, cluster in rows.values() if subfield == name)
        assert [sizes[0], sizes[1], sizes[2]] == sorted(sizes.values(), reverse=True)
    (path,) = (folder / "books").glob("level_names-*.toml")
    blank = path.read_text()
    with pytest.raises(RecipeError, match="names.toml"):
        run("reason", books)
    (folder / "names.toml").write_text(blank)
    with pytest.raises(RecipeError, match=r"\[cytology\] 0 is '', and not one of easy, medium, hard"):
        run("reason", books)
    named = re.sub(r'^0 = ""', '0 = "hard"', blank, flags=re.MULTILINE)
    named = re.sub(r'^1 = ""', '1 = "easy"', named, flags=re.MULTILINE)
    (folder / "names.toml").write_text(re.sub(r'^2 = ""', '2 = "medium"', named, flags=re.MULTILINE))


def written(books: CurationRecipe, server: Server) -> None:
    made = run("reason", books)
    rows = list(made.read())
    clusters = {row["id"]: row["cluster"] for row in finished(books.folder, "level").read()}
    assert len({row["id"] for row in rows}) == len(rows) == len(server.requests)
    assert {row["level"] for row in rows if clusters[row["item"]] == 0} == {"hard"}
    assert not {row["item"] for row in rows} & {"other-book/silent", "other-book/broken"}
    tasks = Counter(row["task"] for row in rows)
    assert max(tasks.values()) - min(tasks.values()) <= 15
    assert all(row["references"] == [f"Figure {row['item']} is typical."] for row in rows)
    prompts = [body["messages"][0]["content"] for body in server.requests]
    assert all(isinstance(prompt, str) for prompt in prompts), "text alone is sent"
    server.requests.clear()
    assert run("reason", books, redo=True).rows == made.rows
    assert not server.requests, "what was paid for outlives a stage that is made anew"
    kept = run("quality", books)
    invented = {row["id"] for row in rows if int(row["caption"].rstrip(".").split()[-1]) % 7 == 6}
    assert kept.dropped == {"not_in_the_source": len(invented)}
    assert {row["id"] for row in kept.read()} == {row["id"] for row in rows} - invented
    page = (books.folder / "quality/review.html").read_text()
    assert "desmin" in page
    assert "kept: " in page


def asked(books: CurationRecipe) -> None:
    made = run("questions", books)
    rows = list(made.read())
    assert len(rows) == 12
    reserved = {row["image_sha256"] for row in rows}
    for stage in ("reason", "quality"):
        assert not reserved & {row["image_sha256"] for row in finished(books.folder, stage).read()}
    assert sorted(Counter(row["answer"] for row in rows).items()) == [("A", 3), ("B", 3), ("C", 3), ("D", 3)]
    captions = {row["id"]: row["panel_caption"] for row in finished(books.folder, "panels").read()}
    for row in rows:
        right = row["options"]["ABCD".index(row["answer"])]
        assert captions[row["item"]].startswith(right)
        assert [option for option in row["options"] if option in captions[row["item"]]] == [right]
    shares = Counter(row["subfield"] for row in rows)
    assert all(2 <= shares[name] <= 3 for name in CLASSES[:5])
    assert run("questions", books, redo=True).digest == made.digest


def sets(books: CurationRecipe) -> None:
    made = run("assemble", books)
    sft = [sample for path in sorted((made.folder / "sft").glob("*.parquet")) for sample in read(path)]
    rl = [sample for path in sorted((made.folder / "rl").glob("*.parquet")) for sample in read(path)]
    assert len(sft) + len(rl) == made.rows
    assert {sample.task for sample in sft} == {"mcq", "open", "conversation"}
    assert {sample.task for sample in rl} == {"mcq"}
    assert {sample.subfield for sample in sft} == {*CLASSES[:5]}
    assert {sample.level for sample in sft} == {"easy", "medium", "hard"}
    assert all(sample.license == "CC0-1.0" for sample in [*sft, *rl])
    for sample in sft:
        assert taught_messages(sample)[-1]["content"].startswith("<think>")
    leaked = [json.loads(line) for line in (made.folder / "dropped.jsonl").read_text().splitlines()]
    reasons = {each["where"].partition("#")[0]: each["reason"] for each in leaked}
    assert reasons["book/gross/3"] == "benchmark_picture"
    ids = [sample.id for sample in [*sft, *rl]]
    first = {"book/histopathology/0", "other-book/copy", "other-book/near"}
    tasks = Counter(id_.partition("#")[2] for id_ in ids if id_.partition("#")[0] in first)
    assert all(count == 1 for count in tasks.values()), "of three that are nearly the same, one a task is left"
    paths = [str(path) for name in ("sft", "rl") for path in (made.folder / name).glob("*.parquet")]
    findings = check(paths, workers=1)
    assert findings.bad == []
    assert findings.rows == made.rows
