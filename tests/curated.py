"""Items of a small library as the stages before would have made them, and models to look at and write about them."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from servers import Response, completion

from pathor1.curation.made import Made
from pathor1.curation.recipe import CurationRecipe
from pathor1.curation.schemas import PANELS, REFERENCES
from pathor1.curation.stage import Card, Dropped, Inputs, Row, WholeStage
from pathor1.data.drawing import CLASSES, picture

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


def small_clip(folder: Path) -> Path:
    """A folder with an open_clip model, tiny and with random weights, as PathoCLIP would be saved in."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    torch.manual_seed(0)
    made = open_clip.CLIP(**model_cfg)
    save_file(made.state_dict(), str(folder / "open_clip_model.safetensors"))
    return folder


def writer(body: dict[str, Any]) -> Response:
    """Answers as a writer that keeps to the rules, but for every seventh caption, of which it invents a stain."""
    told = body["messages"][0]["content"]
    caption = re.search(r"^Caption: (.*)$", told, re.MULTILINE)
    assert caption is not None
    text = caption.group(1)
    diagnosis, system = re.match(r"(.*) of the (\w+) tract", text).groups()  # type: ignore[union-attr]
    if "one JSON object" in told:
        return completion(json.dumps({"diagnosis": diagnosis, "system": system}))
    number = int(re.search(r"number (\d+)", text).group(1))  # type: ignore[union-attr]
    think = f"The tissue is seen first as a whole, then its parts in case {text}"
    if number % 7 == 6:
        think += " Staining for desmin is strong."
    if "<user>" in told:
        steps = (
            ("What kind of picture is it?", think, f"It is one of case {text}"),
            ("Where does one look first?", "Low power shows the border and how the parts lie.", "At the border."),
            ("And then?", "High power shows single cells, one beside the next.", "At the single cells."),
            ("What does it come to?", "Both together leave one name.", f"To {diagnosis}, all in all."),
        )
        rounds = "".join(f"<user>{q}</user><think>{t}</think><answer>{a}</answer>" for q, t, a in steps)
        return completion(rounds)
    form = "<options>\nA. Something else\nB. " + diagnosis + "\n</options>\n" if "<options>" in told else ""
    answer = "B" if form else f"It is {diagnosis}, as the way through the whole of {text} shows."
    return completion(f"<question>What is it?</question>\n{form}<think>{think}</think>\n<answer>{answer}</answer>")


def recipe(folder: Path, **tables: Any) -> CurationRecipe:
    return CurationRecipe.model_validate(
        {"name": "books", "runs_dir": str(folder), "workers": 1, "books": {"pdfs": ["none"]}, **tables}
    )
