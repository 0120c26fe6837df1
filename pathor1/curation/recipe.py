"""A curation as a TOML file: which books, and how each stage works. As strict as a run's recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pathor1.benchmark import Requests, check_endpoint
from pathor1.curation import recipe_samples
from pathor1.curation.recipe_samples import Assemble, Level, Quality, Questions, Reason, Subfield
from pathor1.recipe import checked, run_name
from pathor1.recipe_table import Fraction, Positive, PositiveNumber, Table
from pathor1.recipe_tree import read
from pathor1.storage import anchored


class Books(Table):
    """What is curated."""

    pdfs: list[str] = Field(min_length=1, description="PDF files, folders of such files, or globs.")
    license: str | None = Field(
        default=None, description="The licence of all of them, which each sample carries; not set = unknown."
    )


class PageSettings(Table):
    """Stage `pages`: PDF to page pictures."""

    dpi: int = Field(
        default=200, ge=72, le=600, description="Pixels an inch of the page pictures. [our choice: OCR's usual 200]"
    )
    max_pixels: Positive = Field(
        default=30_000_000,
        description="A page that would have more is rendered at fewer dpi, which its row says. [our choice: A3 at 300]",
    )
    picture: Literal["png", "jpeg"] = Field(
        default="png", description="Page pictures without loss, or a fifth of the bytes (quality 95). [our choice]"
    )
    chunk: int = Field(
        default=16, ge=4, description="Pages that are worked on together: done again after an interrupt. [our choice]"
    )


class LayoutSettings(Table):
    """Stage `layout`: what is where on a page."""

    detector: Literal["classical", "transformers", "docling_json", "doclayout_yolo"] = Field(
        default="classical",
        description="classical: text layer, picture objects, connected components, white space; no weights. "
        "transformers: a model folder of Docling's layout models or another object detector that transformers loads. "
        "docling_json: what Docling has found already, a folder of its JSON files. "
        "doclayout_yolo: its own package (AGPL), which is not installed with pathor1.",
    )
    weights: str | None = Field(
        default=None,
        description="The detector's model folder or file, or the folder of JSON files; the classical one has none.",
    )
    threshold: Fraction = Field(
        default=0.3, description="Boxes of a model that are less sure are passed over. [Docling's own]"
    )
    device: str = Field(default="cpu", description="Where a model runs: `cpu` or `cuda`.")
    ocr: Literal["rapidocr", "tesseract", "none"] = Field(
        default="rapidocr",
        description="Reads pages that have no text layer. rapidocr comes with pathor1[curation], its models in its "
        "wheel; tesseract is a program of the system. none = such pages are dropped.",
    )
    ocr_languages: str = Field(
        default="eng", description="Of tesseract, as its -l has them. RapidOCR reads English and Chinese."
    )

    @model_validator(mode="after")
    def _weights(self) -> Self:
        if self.detector != "classical" and self.weights is None:
            raise ValueError(f'layout.detector = "{self.detector}" needs layout.weights, its folder or file')
        if self.detector == "classical" and self.weights is not None:
            raise ValueError('layout.weights is set and layout.detector = "classical" has none; name the detector')
        return self


class CaptionSettings(Table):
    """Stage `captions`: figures and captions, matched one to one."""

    max_distance: PositiveNumber = Field(
        default=0.15, description="Farthest gap between a figure and its caption, of the page's height. [our choice]"
    )
    across_pages: bool = Field(
        default=True, description="A caption may stand on the page before or after its figure's, where that has none."
    )
    min_side: Positive = Field(
        default=64, description="Figures with a shorter side, in pixels, are dropped: rules and logos. [our choice]"
    )


class Endpoint(Requests):
    """An OpenAI-compatible server and its model. Without it the stage goes by its rules alone."""

    url: str = Field(description="Where it is served, such as `http://localhost:8000/v1`.")
    model: str = Field(min_length=1, description="Its name there.")
    max_tokens: Positive = Field(default=2048, description="Longest reply in tokens. [our choice]")

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        check_endpoint(url)
        return url


class PanelSettings(Table):
    """Stage `panels`: composite figures into panels."""

    min_gutter: PositiveNumber = Field(
        default=0.006, description="Narrowest white (or black) strip between panels, of the longer side. [our choice]"
    )
    min_panel: Fraction = Field(
        default=0.08, description="Shortest side of a panel, of the figure's same side. [our choice]"
    )
    model: Endpoint | None = Field(
        default=None, description="A vision-language model that is asked as well; where it disagrees a person looks."
    )


class ReferenceSettings(Table):
    """Stage `references`: where the body text speaks of a figure."""

    window_pages: Positive = Field(
        default=40,
        description="A mention farther from the figure than so many pages is another chapter's where two figures have "
        "the same number. [our choice]",
    )
    model: Endpoint | None = Field(
        default=None,
        description="A language model that is asked for further sentences, on the figure's page and those beside it; "
        "what is not in the text word for word is refused.",
    )


class CurationRecipe(Table):
    """What the stages' folders are called, and where they lie."""

    name: str = Field(description="Names the folder: runs_dir/name/STAGE. a-z, 0-9 and hyphens.")
    runs_dir: str = Field(default="runs", description="Holds the folders of runs; on a cluster one that all share.")
    seed: int = Field(default=0, description="Of everything that is drawn by chance.")
    workers: Positive | None = Field(
        default=None, description="Processes side by side in a stage; not set = as many as this machine has CPUs."
    )
    review_items: Positive = Field(default=60, description="Most items on a stage's review page. [our choice]")
    books: Books
    pages: PageSettings = PageSettings()
    layout: LayoutSettings = LayoutSettings()
    captions: CaptionSettings = CaptionSettings()
    panels: PanelSettings = PanelSettings()
    references: ReferenceSettings = ReferenceSettings()
    subfield: Subfield | None = None
    level: Level | None = None
    reason: Reason | None = None
    quality: Quality = Quality()
    questions: Questions = Questions()
    assemble: Assemble = Assemble()

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        return run_name(name)

    @property
    def folder(self) -> Path:
        """Holds a folder for each stage."""
        return Path(self.runs_dir) / self.name


def is_curation(path: str | Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a recipe is of curation. Raises RecipeError for a file that is missing or no TOML."""
    return "books" in read(path, overrides)[0]


def as_written(path: str | Path, overrides: Sequence[str] = ()) -> CurationRecipe:
    """Reads a curation's recipe, its paths as they are written. Raises RecipeError as a run's does."""
    return checked(CurationRecipe, *read(path, overrides), path)


def load(path: str | Path, overrides: Sequence[str] = ()) -> CurationRecipe:
    """Reads a curation's recipe, relative paths made absolute. Raises RecipeError as a run's does."""
    recipe = as_written(path, overrides)
    books = recipe.books.model_copy(update={"pdfs": [anchored(each) for each in recipe.books.pdfs]})
    update: dict[str, object] = {"runs_dir": anchored(recipe.runs_dir), "books": books}
    if recipe.layout.weights is not None:
        update["layout"] = recipe.layout.model_copy(update={"weights": anchored(recipe.layout.weights)})
    update |= recipe_samples.anchored(recipe.subfield, recipe.level, recipe.reason, recipe.assemble)
    return recipe.model_copy(update=update)
