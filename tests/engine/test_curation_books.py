"""A small textbook, of which all is known, through all stages by one recipe; and PDFs of every odd kind."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import odd_pdfs
import pytest
import textbook
from curated import small_clip, writes
from processes import running
from servers import Server, serving

from pathor1.cli import main
from pathor1.curation.made import Made, finished
from pathor1.curation.reasoning_prompts import LEVELS
from pathor1.curation.stages import STAGES
from pathor1.data.checking import check
from pathor1.samples import read

STAGES_HERE = ("pages", "layout", "captions", "panels", "references")
DPI = 200
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    from pathor1.ray_cluster import ray_cluster

    with ray_cluster({}, log_to_driver=False):
        yield


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> textbook.Textbook:
    return textbook.make(tmp_path_factory.mktemp("book") / "Patterns of Disease.pdf")


RECIPE = """
name = "books"
runs_dir = "FOLDER/runs"
workers = 1
[books]
pdfs = ["BOOK"]
[pages]
chunk = 4
[subfield]
labels = ["FOLDER/labels.csv"]
classes = ["histopathology", "fish", "other"]
kept = ["histopathology", "fish"]
model = "test_efficientnet"
size = 32
epochs = 1
batch_size = 4
[level]
model = "FOLDER/clip"
names = "FOLDER/names.toml"
[reason]
url = "URL"
model = "m"
tasks_each = 4
[questions]
count = 4
reserved = 0.5
options = 2
"""


def recipe_of(book: Path, folder: Path, *, url: str = "http://localhost:1/v1") -> Path:
    path = folder / "recipe.toml"
    text = RECIPE.replace("BOOK", str(book)).replace("FOLDER", str(folder)).replace("URL", url)
    path.write_text(text, encoding="utf-8")
    return path


def curate(recipe: Path, *stages: str) -> dict[str, Made]:
    """The stages by the command, as a user gives it."""
    for stage in stages:
        assert main(["curate", stage, str(recipe)]) == 0, stage
    return {stage: finished(recipe.parent / "runs/books", stage) for stage in stages}


@pytest.fixture(scope="module")
def writer() -> Iterator[Server]:
    """A server that writes about the book's figures as it is asked to."""

    def told_by(caption: str) -> tuple[str | None, str]:
        found = (name for words, name in textbook.DIAGNOSES.items() if words in caption)
        return next(found, None), "digestive"

    with serving(writes(told_by, invents=lambda caption: "Caseous" in caption)) as found:
        yield found


@pytest.fixture(scope="module")
def recipe(book: textbook.Textbook, writer: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe_of(book.path, tmp_path_factory.mktemp("curation"), url=writer.url)


@pytest.fixture(scope="module")
def made(recipe: Path) -> dict[str, Made]:
    return curate(recipe, *STAGES_HERE)


def in_pixels(box: textbook.Corners) -> tuple[float, ...]:
    return tuple(value * DPI / 72 for value in box)


def shared(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union."""
    across, down = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    common = max(0.0, across) * max(0.0, down)
    return common / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common)


def alike(one: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, one, other).ratio() > 0.97


def f1(right: int, found: int, true: int) -> float:
    return 2 * right / (found + true)


def test_every_page_keeps_its_size_and_its_text(made: dict[str, Made]) -> None:
    rows = list(made["pages"].read(["page", "kind", "width", "height", "dpi", "words", "pictures", "book", "source"]))
    assert [row["page"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["kind"] for row in rows] == [*["born_digital"] * 4, "scanned", *["born_digital"] * 2]
    assert {(row["width"], row["height"], row["dpi"]) for row in rows} == {(1700, 2200, 200.0)}
    assert {row["source"] for row in rows} == {"Patterns of Disease.pdf"}
    assert all(row["book"].startswith("patterns-of-disease-") for row in rows)
    assert [bool(row["words"]) for row in rows] == [True] * 4 + [False] + [True] * 2
    first = " ".join(word["text"] for word in rows[0]["words"])
    assert "The glands of the colon stand like test tubes in a rack (Fig. 1-1)." in first
    assert [round(value) for value in rows[1]["pictures"][0]] == [150, 200, 1550, 1117]


def test_the_scanned_page_is_read_and_the_report_says_by_what(made: dict[str, Made]) -> None:
    rows = list(made["layout"].read(["page", "kind", "text", "text_from", "tool"]))
    assert {row["text_from"].split()[0] for row in rows if row["page"] == 5} == {"rapidocr"}
    assert {row["text_from"] for row in rows if row["page"] != 5} == {"pdf"}
    assert {row["tool"] for row in rows} == {"classical detector 1"}
    text = " ".join(row["text"] for row in rows if row["page"] == 5 and row["kind"] == "text")
    assert "Mucin lies in pools around the cells (Fig. 1-6B)." in text
    assert "classical detector" in (made["layout"].folder / "review.html").read_text()


def test_columns_are_read_one_after_the_other(made: dict[str, Made]) -> None:
    kinds = [row["kind"] for row in made["layout"].read(["page", "kind", "order"]) if row["page"] == 3]
    assert kinds == ["other", "caption", "figure", "text", "text", "figure", "caption"]
    kinds = [row["kind"] for row in made["layout"].read(["page", "kind"]) if row["page"] == 1]
    assert kinds == ["other", "title", "title", "text", "text", "figure", "caption", "text"]


def test_figures_have_their_captions(made: dict[str, Made], book: textbook.Textbook) -> None:
    rows = list(made["captions"].read())
    matched = [row for row in rows if row["status"] == "matched"]
    true = [figure for figure in book.figures if figure.caption]
    right = [
        (figure, row)
        for figure in true
        for row in matched
        if row["page"] == figure.page
        and shared(in_pixels(figure.box), tuple(row["box"])) > 0.9
        and alike(figure.caption, row["caption"])
    ]
    assert f1(len(right), len(matched), len(true)) >= 0.95
    assert {row["number"]: row["side"] for _, row in right} == {each.number: each.side for each in true}
    assert {row["number"]: row["caption_page"] for _, row in right}["1-7"] == 7
    alone = [row for row in rows if row["status"] == "figure_without_caption"]
    assert [(row["page"], row["caption"]) for row in alone] == [(4, "")]
    assert not [row for row in rows if row["status"] == "caption_without_figure"]


def test_panels_have_their_labels_and_their_part_of_the_caption(made: dict[str, Made], book: textbook.Textbook) -> None:
    rows = list(made["panels"].read())
    true = [
        (figure, label, box)
        for figure in book.figures
        if figure.caption
        for label, box in (figure.panels or {"": figure.box}).items()
    ]
    right = 0
    for figure, label, box in true:
        for row in rows:
            if (row["number"], row["panel"]) == (figure.number, label):
                others = [words for other, words in figure.parts.items() if other != label]
                says = figure.parts.get(label, "") in row["panel_caption"]
                right += (
                    shared(in_pixels(box), tuple(row["box"])) > 0.9
                    and says
                    and (not label or not any(words in row["panel_caption"] for words in others))
                )
    assert f1(right, len(rows), len(true)) >= 0.95
    by = {(row["number"], row["panel"]): row["label_from"] for row in rows}
    assert {by["1-2", label] for label in "ABCD"} | {by["1-6", label] for label in "AB"} == {"ocr"}
    assert by["1-5", "left"] == by["1-5", "right"] == "position"
    assert [row["review"] for row in rows] == [""] * len(rows)
    of_b = next(row["panel_caption"] for row in rows if (row["number"], row["panel"]) == ("1-2", "B"))
    assert of_b == (
        "Four faces of inflammation. Plasma cells crowd the base of the mucosa in chronic colitis. "
        "(A to D, hematoxylin and eosin.)"
    )


def test_sentences_that_refer_to_figures_are_found(made: dict[str, Made], book: textbook.Textbook) -> None:
    rows = list(made["references"].read())
    found = {(row["number"], tuple(row["panels"]), row["page"], row["mention"]) for row in rows}
    assert len(found) == len(rows)
    assert f1(len(found & book.references), len(found), len(book.references)) >= 0.95
    assert {row["mention"]: row["sentence"] for row in rows} == book.sentences
    texts = body_texts(made["layout"])
    for row in rows:
        assert row["end_page"] == row["page"]
        assert texts[row["page"]][row["start"] : row["end"]].replace("\n", " ") == row["sentence"]


def body_texts(layout: Made) -> dict[int, str]:
    texts: dict[int, list[str]] = {}
    for row in layout.read(["page", "kind", "text"]):
        if row["kind"] == "text":
            texts.setdefault(row["page"], []).append(row["text"])
    return {page: "\n".join(found) for page, found in texts.items()}


def test_the_same_recipe_goes_on_to_training_sets(made: dict[str, Made], recipe: Path, writer: Server) -> None:
    folder = recipe.parent
    panels = {row["id"]: row for row in made["panels"].read(["id", "number", "panel_caption", "image_sha256"])}
    rare = {"1-1": "other", "1-7": "fish"}
    labels = [f"{id_},{rare.get(row['number'], 'histopathology')}" for id_, row in panels.items()]
    (folder / "labels.csv").write_text("\n".join(["id,label", *labels]) + "\n")
    small_clip(folder / "clip")
    sorted_ = curate(recipe, "subfield", "level")
    items = {row["id"] for row in sorted_["level"].read()}
    assert sorted_["subfield"].dropped == {"is other": 1}
    assert sorted_["level"].dropped == {"few of its subfield": 1}, "one picture makes no three clusters"
    assert len(items) == len(panels) - 2 == 10
    (blank,) = (folder / "runs/books").glob("level_names-*.toml")
    lines = blank.read_text().splitlines()
    names = "\n".join(re.sub(r'^(\d) = ""', lambda at: f'{at[1]} = "{LEVELS[int(at[1])]}"', line) for line in lines)
    (folder / "names.toml").write_text(names)

    later = curate(recipe, "reason", "quality", "questions", "assemble")
    replies = list(later["reason"].read())
    about = {row["item"] for row in replies}
    assert len(replies) == 4 * len(about)
    clusters = {row["id"]: row["cluster"] for row in sorted_["level"].read()}
    said: dict[str, set[str]] = {}
    for row in made["references"].read(["figure", "sentence"]):
        said.setdefault(row["figure"], set()).add(row["sentence"])
    for row in replies:
        assert row["level"] == LEVELS[clusters[row["item"]]]
        assert row["caption"] == panels[row["item"]]["panel_caption"]
        assert {*row["references"]} <= said.get(row["item"].rpartition("/")[0], set())
    assert any(row["references"] for row in replies)
    invented = {row["id"] for row in replies if "Caseous" in row["caption"]}
    assert later["quality"].dropped == ({"not_in_the_source": len(invented)} if invented else {})
    assert later["quality"].rows == len(replies) - len(invented)
    asked = list(later["questions"].read())
    assert {row["item"] for row in asked} <= items - about
    assert len(asked) == 4
    for row in asked:
        right = row["options"]["AB".index(row["answer"])].lower()
        caption = panels[row["item"]]["panel_caption"]
        assert right in {name.lower() for words, name in textbook.DIAGNOSES.items() if words in caption}
    sets = {name: folder / "runs/books/assemble" / name for name in ("sft", "rl")}
    for name, path in sets.items():
        paths = [str(file) for file in sorted(path.glob("*.parquet"))]
        samples = [sample for file in paths for sample in read(file)]
        assert len(samples) == {"sft": later["quality"].rows, "rl": 4}[name]
        assert {sample.source for sample in samples} == {row["book"] for row in made["panels"].read(["book"])}
        assert check(paths, workers=1).bad == []
    prompts = [body["messages"][0]["content"] for body in writer.requests]
    assert all(isinstance(prompt, str) for prompt in prompts), "text alone is sent"


def test_odd_pdfs_are_reported_and_the_others_go_on(tmp_path: Path) -> None:
    made = curate(recipe_of(odd_pdfs.make(tmp_path / "books"), tmp_path), *STAGES_HERE)
    lines = [json.loads(line) for line in (made["pages"].folder / "dropped.jsonl").read_text().splitlines()]
    assert {(Path(line["where"]).name, line["reason"]) for line in lines} == odd_pdfs.DROPPED
    pages: dict[str, list[Any]] = {}
    for row in made["pages"].read(["source", "width", "height", "kind", "dpi", "words"]):
        pages.setdefault(row["source"], []).append(row)
    assert [(row["width"], row["height"]) for row in pages["rotated.pdf"]] == [(1700, 2200), (2200, 1700)] * 2
    assert pages["huge.pdf"][0]["width"] * pages["huge.pdf"][0]["height"] <= 30_100_000
    assert pages["huge.pdf"][0]["dpi"] < 30
    assert pages["blank.pdf"][0]["kind"] == "blank"
    assert made["layout"].dropped["blank page"] == 1
    assert {row["source"] for row in made["pages"].read(["source"])} == odd_pdfs.READ
    captions = list(made["captions"].read(["book", "status", "caption"]))
    assert {(row["book"].rpartition("-")[0], row["status"], row["caption"]) for row in captions} >= {
        ("sound", "matched", "Figure 7 A sound figure."),
        ("no-words", "figure_without_caption", ""),
        ("tiny", "caption_without_figure", "Figure 1-1 A caption without a figure."),
    }
    assert [row["panel_caption"] for row in made["panels"].read()] == ["Figure 7 A sound figure."]
    assert made["panels"].dropped["caption without figure"] >= 1
    sentences = [row["sentence"] for row in made["references"].read()]
    assert sentences == ["All of this can be seen in Figure 7, and in no other figure."]
    assert "<script>alert" not in (made["captions"].folder / "review.html").read_text()


def test_the_command_does_a_stage_and_says_what_is_missing(book: textbook.Textbook, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'name = "cli"\nruns_dir = "{tmp_path}"\n[books]\npdfs = ["{book.path}"]\n', encoding="utf-8")
    with running(["pathor1.cli", "curate", "layout", str(recipe)], tmp_path / "log") as process:
        assert process.finish(120) == 2
        assert process.output().splitlines()[-1] == (
            f"pathor1: {tmp_path}/cli/pages: the stage pages is not finished; `pathor1 curate pages RECIPE` comes first"
        )
    with running(["ray_jobs.curate", "pages", str(recipe)], tmp_path / "log2") as process:
        assert process.finish(240) == 0, process.output()
        assert f"{tmp_path}/cli/pages: 7 rows of 7 items" in process.output()
    assert finished(tmp_path / "cli", "pages").rows == 7
    assert list(STAGES)[:5] == list(STAGES_HERE)
