"""Items of a small library as the stages before would have made them, and models to look at and write about them."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clip_models import write_config
from PIL import Image
from servers import Answer, Response, completion

from pathor1.contrastive import ClipModel
from pathor1.curation.made import Made
from pathor1.curation.recipe import CurationRecipe
from pathor1.curation.schemas import PANELS, REFERENCES
from pathor1.curation.stage import Card, Dropped, Inputs, Row, WholeStage
from pathor1.data.drawing import CLASSES, picture
from pathor1.data.stream import StreamState
from pathor1.runs import RunFolder

DIAGNOSES = {
    "histopathology": "tubular adenoma|follicular lymphoma|squamous carcinoma|mucinous cystadenoma|glioma|seminoma",
    "gross": "lipoma of the thigh|nodular melanoma|hydatid cyst|renal oncocytoma|uterine fibroid|colloid goitre",
    "ihc": "mantle cell lymphoma|ductal carcinoma|mesothelioma|thymoma|plasmacytoma|synovial sarcoma",
    "cytology": "Warthin tumour|pleomorphic adenoma|fibroadenoma|urothelial carcinoma|phaeochromocytoma|chordoma",
    "fish": "Burkitt lymphoma|Ewing sarcoma|lobular carcinoma|oligodendroglioma|neuroblastoma|liposarcoma",
}
SYSTEMS = ("digestive", "skin")


class Library(WholeStage):
    """Stands for `panels`: `each` pictures of every subfield, each with a caption that names its diagnosis.

    Behind them the same picture in another book (book/copy), one that is nearly the same as another (book/near), one
    that cannot be read (book/broken), and one without a caption (book/silent).
    """

    name = "panels"
    version = 1
    inputs = ()
    schema = PANELS
    each = 24

    def settings(self) -> Mapping[str, Any]:
        return {"each": self.each}

    def make(self, inputs: Inputs, work: Path) -> Iterator[Row | Dropped]:
        del inputs, work
        names: dict[str, list[str]] = {}
        for name, (subfield, _) in CLASSES.items():
            names.setdefault(subfield, []).append(name)
        first: Row = {}
        for subfield, classes in names.items():
            for n in range(self.each):
                rng = np.random.default_rng([n, len(subfield)])
                image = picture(classes[n % len(classes)], rng, size=64, difficulty=0.2)
                diagnosis = DIAGNOSES[subfield].split("|")[n % 6]
                system = SYSTEMS[n % 3 == 0]
                row = panel(
                    f"book/{subfield}/{n}", image, f"{diagnosis.capitalize()} of the {system} tract, number {n}."
                )
                first = first or row
                yield row
        yield {**first, "id": "other-book/copy", "book": "other-book", "figure": "other-book/copy/figure"}
        buffer = io.BytesIO()
        Image.open(io.BytesIO(first["image"])).convert("RGB").resize((80, 80)).save(buffer, "JPEG", quality=85)
        yield panel("other-book/near", buffer.getvalue(), first["panel_caption"])
        yield panel("other-book/broken", b"no picture", "A seminoma.")
        yield panel("other-book/silent", picture("adenoma", np.random.default_rng(99), size=64, difficulty=0.2), " ")

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        del made, inputs
        return iter(())


class Sentences(WholeStage):
    """Stands for `references`: a sentence on every item's figure, and one on another panel of it."""

    name = "references"
    version = 1
    inputs = ("panels",)
    schema = REFERENCES

    def settings(self) -> Mapping[str, Any]:
        return {}

    def make(self, inputs: Inputs, work: Path) -> Iterator[Row | Dropped]:
        del work
        for row in inputs["panels"].read(["id", "figure", "book"]):
            for panels, sentence in (
                (["A"], f"Figure {row['id']} is typical."),
                (["B"], "Panel B is of another case."),
            ):
                yield {
                    "id": f"{row['id']}/{panels[0]}",
                    "book": row["book"],
                    "page": 1,
                    "figure": row["figure"],
                    "number": "1",
                    "panels": panels,
                    "mention": "Figure 1",
                    "sentence": sentence,
                    "start": 0,
                    "end_page": 1,
                    "end": 10,
                    "tool": "test",
                }

    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        del made, inputs
        return iter(())


def panel(id_: str, image: bytes, caption: str) -> Row:
    return {
        "id": id_,
        "book": id_.partition("/")[0],
        "page": 1,
        "figure": f"{id_}/figure",
        "number": "1",
        "panel": "A",
        "box": [0.0, 0.0, 1.0, 1.0],
        "caption": caption,
        "panel_caption": caption,
        "label_from": "text",
        "review": "",
        "license": "CC0-1.0",
        "image": image,
        "image_sha256": hashlib.sha256(image).hexdigest(),
        "tool": "test",
    }


def subfield_of(id_: str) -> str:
    """The truth: of an item that stands for itself."""
    return id_.split("/")[1] if id_.startswith("book/") else "histopathology"


def small_clip(run: Path) -> Path:
    """The folder of a run as `pathor1 clip train` leaves it, with a checkpoint of a tiny model with random weights."""
    import torch

    from pathor1.clip import checkpoint, models

    run.mkdir(parents=True)
    found = models.find(ClipModel(architecture=str(write_config(run))))
    torch.manual_seed(0)
    made = models.build(found)
    checkpoint.save(
        made,
        found.config,
        models.tokenizer(found),
        torch.optim.SGD(made.parameters()),
        RunFolder(run).checkpoints,
        5,
        stream=StreamState(seed=0, sources=()),
        ranks=1,
        recipe="",
        keep=2,
        spare=(),
    )
    return run


def writes(told_by: Callable[[str], tuple[str | None, str]], *, invents: Callable[[str], bool]) -> Answer:
    """Answers as a writer that keeps to the rules. told_by: caption -> diagnosis, if there is one, and tissue system.

    invents: whether it is to invent a stain of a picture with this caption.
    """

    def answer(body: dict[str, Any]) -> Response:
        told = body["messages"][0]["content"]
        caption = re.search(r"^Caption: (?:Figure [\d-]+ )?(.*)$", told, re.MULTILINE)
        assert caption is not None
        text = caption.group(1)
        diagnosis, system = told_by(text)
        if "one JSON object" in told:
            return completion(json.dumps({"diagnosis": diagnosis, "system": system}))
        return completion(_sample(told, text, diagnosis or "a normal organ", invented=invents(text)))

    return answer


def _sample(told: str, text: str, diagnosis: str, *, invented: bool) -> str:
    think = f"The tissue is seen first as a whole, then its parts in case {text}"
    if invented:
        think += " Staining for desmin is strong."
    head = text.partition(". ")[0]
    if "<user>" in told:
        steps = (
            ("What kind of picture is it?", think, f"It is one of case {head}"),
            ("Where does one look first?", "Low power shows the border and how the parts lie.", "At the border."),
            ("And then?", "High power shows single cells, one beside the next.", "At the single cells."),
            ("What does it come to?", "Both together leave one name.", f"To {diagnosis}, all in all."),
        )
        return "".join(f"<user>{q}</user><think>{t}</think><answer>{a}</answer>" for q, t, a in steps)
    form = "<options>\nA. Something else\nB. " + diagnosis + "\n</options>\n" if "<options>" in told else ""
    answer = "B" if form else f"It is {diagnosis}, as the way through the whole of {head} shows."
    return f"<question>What is it?</question>\n{form}<think>{think}</think>\n<answer>{answer}</answer>"


def _of_tract(caption: str) -> tuple[str, str]:
    diagnosis, system = re.match(r"(.*) of the (\w+) tract", caption).groups()  # type: ignore[union-attr]
    return diagnosis, system


# Of every seventh caption of the library it invents a stain.
writer = writes(_of_tract, invents=lambda text: int(re.search(r"number (\d+)", text).group(1)) % 7 == 6)  # type: ignore[union-attr]


def recipe(folder: Path, **tables: Any) -> CurationRecipe:
    return CurationRecipe.model_validate(
        {"name": "books", "runs_dir": str(folder), "workers": 1, "books": {"pdfs": ["none"]}, **tables}
    )
