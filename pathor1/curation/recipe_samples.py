"""The tables of a curation recipe for the stages from subfields to training sets."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from pathor1 import storage
from pathor1.benchmark import Requests, check_endpoint
from pathor1.curation.drafts import DraftTask
from pathor1.recipe_table import Fraction, Positive, PositiveNumber, Table
from pathor1.samples import SUBFIELDS


class Subfield(Table):
    """The classifier of subfields: EfficientNet on Ray Train (Patho-R1, section 3.3)."""

    labels: list[str] = Field(
        min_length=1,
        description="CSV files with the columns id and label: the first ones by hand, then the reviewed queues. A "
        "later file's label of an id takes the place of an earlier one's.",
    )
    classes: list[str] = Field(
        default=["histopathology", "gross", "ihc", "cytology", "fish", "other"],
        min_length=2,
        description="All labels that there are. [Patho-R1 began with ten and kept five]",
    )
    kept: list[str] = Field(
        default=["histopathology", "gross", "ihc", "cytology", "fish"],
        min_length=1,
        description="Labels that go on; items of others are dropped. [Patho-R1]",
    )
    model: str = Field(
        default="efficientnet_b0", min_length=1, description="timm's name of the network. [our choice of size]"
    )
    weights: str | None = Field(
        default=None,
        description="File of pretrained weights for it, `.safetensors` or `.pth`; not set = random ones, which need "
        "many more labels.",
    )
    size: Positive = Field(default=224, description="Side of the square that pictures become, in pixels. [timm]")
    epochs: Positive = Field(default=20, description="Passes over the labelled items. [our choice]")
    batch_size: Positive = Field(default=32, description="Pictures a step, over all workers. [our choice]")
    learning_rate: PositiveNumber = Field(default=1e-3, description="Highest rate of AdamW. [our choice]")
    workers: Positive = Field(default=1, description="Training processes. [our choice]")
    held_out: Fraction = Field(
        default=0.2,
        description="Share of the labelled items on which accuracy is told and none is trained: by the digest of the "
        "picture, so that an item stays where it is from round to round. [our choice]",
    )
    queue: Positive = Field(
        default=200, description="Items of the review queue, those that the classifier is least sure of. [our choice]"
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.workers:
            raise ValueError(
                f"subfield.batch_size = {self.batch_size} is not a multiple of subfield.workers = {self.workers}"
            )
        if unknown := [name for name in self.kept if name not in self.classes or name not in SUBFIELDS]:
            raise ValueError(f"subfield.kept: {unknown[0]!r} is not among subfield.classes, or no subfield of a sample")
        return self


class Level(Table):
    """Three clusters in each subfield, on joint embeddings of picture and caption (Patho-R1, section 3.3)."""

    model: str = Field(
        min_length=1,
        description="A run of `pathor1 clip train` (its last checkpoint), a checkpoint of one, another folder with "
        "`open_clip_config.json`, or open_clip's name of a model, such as `ViT-B-16`.",
    )
    checkpoint: str | None = Field(
        default=None, description="File of its weights; not set = those of the folder, or random ones."
    )
    names: str | None = Field(
        default=None,
        description="TOML file in which the reviewer names the clusters, a table for each subfield: "
        '`[ihc]` `0 = "hard"`. Not set = the stage makes the clusters and a file to fill in, and stops.',
    )
    picture_weight: Fraction = Field(
        default=0.5, description="Of the picture in the joint embedding; the caption has the rest. [our choice]"
    )
    batch_size: Positive = Field(default=64, description="Items in one forward pass. [our choice]")


class Reason(Requests):
    """The model that writes samples from captions, and what it may cost."""

    url: str | None = Field(
        default=None,
        description="OpenAI-compatible server, such as `https://api.deepseek.com/v1`; not set = vLLM on Ray Data.",
    )
    model: str = Field(min_length=1, description="Its name there; without a url, a folder or a hub's name.")
    tasks_each: int = Field(
        default=1, ge=1, le=4, description="Of the four tasks so many for each item, in turn. [our choice]"
    )
    tasks: list[DraftTask] = Field(
        default=["multiple_choice", "description", "complex_reasoning", "multi_turn"],
        min_length=1,
        description="Which of the four tasks are written. [Patho-R1: all]",
    )
    samples: Positive | None = Field(default=None, description="At most so many samples; not set = all.")
    max_tokens: Positive = Field(
        default=8192, description="Longest reply in tokens, a reasoning model's own thoughts included. [our choice]"
    )
    temperature: float = Field(default=0.6, ge=0, description="Of the replies. [DeepSeek-R1's model card]")
    requests_per_minute: Positive | None = Field(default=None, description="The server's limit; not set = none.")
    tokens_per_minute: Positive | None = Field(
        default=None, description="The server's limit, of prompts and replies together; not set = none."
    )
    input_price: float = Field(default=0.0, ge=0, description="Of a million tokens of prompts.")
    output_price: float = Field(default=0.0, ge=0, description="Of a million tokens of replies.")
    currency: str = Field(default="USD", min_length=1, description="Of the prices and the budget.")
    budget: PositiveNumber | None = Field(
        default=None,
        description="The stage does not start where it expects to cost more, and stops where it has; not set = none.",
    )
    expected_tokens: Positive = Field(
        default=2000, description="A reply's tokens, by which the cost is told before there is one. [our choice]"
    )
    engines: Positive = Field(default=1, description="Without a url: vLLM engines side by side. [our choice]")
    tensor_parallel: Positive = Field(default=1, description="Without a url: GPUs over which one is spread.")
    max_model_tokens: Positive = Field(
        default=16384, description="Without a url: longest prompt and reply together, in tokens. [our choice]"
    )
    cpu_kv_cache_gb: Positive = Field(default=1, description="Without a url: KV cache of an engine; CPU only.")

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None:
            check_endpoint(url)
        return url

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.budget is not None and not (self.input_price or self.output_price):
            raise ValueError("reason.budget needs reason.input_price and reason.output_price")
        if self.tasks_each > len(set(self.tasks)):
            raise ValueError(f"reason.tasks_each = {self.tasks_each} is above the number of reason.tasks")
        return self


class Quality(Table):
    """Which replies are kept."""

    most_words: Positive = Field(default=1000, description="Longest sample, reasoning and answers. [our choice]")
    most_question_words: Positive = Field(default=150, description="Longest question. [our choice]")
    look_at: Positive = Field(
        default=20, description="Of those kept, and of those that each rule drops, so many are shown. [our choice]"
    )


class Questions(Table):
    """Multiple-choice questions on diagnoses, for RL."""

    count: Positive = Field(default=10_000, description="Questions. [Patho-R1]")
    reserved: Fraction = Field(
        default=0.1,
        description="Share of the pictures from which no sample of the supervised stage is written: questions are made "
        "of these. [our choice]",
    )
    options: int = Field(default=4, ge=2, le=6, description="Options of a question. [our choice; Patho-R1: A to F]")
    by_system: list[str] = Field(
        default=["histopathology", "gross"],
        description="Subfields in which the shares of tissue systems are kept too. [Patho-R1]",
    )
    facts_url: str | None = Field(
        default=None,
        description="Server of the model that names diagnosis and tissue system from a caption; not set = reason.url.",
    )
    facts_model: str | None = Field(default=None, description="Its name there; not set = reason.model.")


class Assemble(Table):
    """The sets as files of samples."""

    benchmarks: list[str] = Field(
        default=[],
        description="Files of samples that must not be trained on, in the forms of data.train: what is near one of "
        "theirs, by picture or text, is dropped.",
    )
    picture_distance: int = Field(
        default=6, ge=0, le=15, description="Pictures are near where so many of 64 bits differ, or fewer. [our choice]"
    )
    text_similarity: float = Field(
        default=0.8, gt=0, le=1, description="Texts are near from this Jaccard index of their words on. [our choice]"
    )
    license: str | None = Field(default=None, description="Written to every sample.")
    held_out: Fraction = Field(default=0.02, description="Share of the RL set that becomes its val split. [our choice]")


def anchored(
    subfield: Subfield | None, level: Level | None, reason: Reason | None, assemble: Assemble
) -> dict[str, object]:
    """The tables whose paths are relative, with absolute ones, for `model_copy`."""
    changes: dict[str, object] = {}
    if subfield is not None:
        paths: dict[str, object] = {"labels": [storage.anchored(path) for path in subfield.labels]}
        if subfield.weights is not None:
            paths["weights"] = storage.anchored(subfield.weights)
        changes["subfield"] = subfield.model_copy(update=paths)
    if level is not None:
        files = {name: getattr(level, name) for name in ("checkpoint", "names")}
        paths = {name: storage.anchored(path) for name, path in files.items() if path is not None}
        changes["level"] = level.model_copy(update={**paths, "model": storage.model(level.model)})
    if reason is not None and reason.url is None:
        changes["reason"] = reason.model_copy(update={"model": storage.model(reason.model)})
    changes["assemble"] = assemble.model_copy(update={"benchmarks": storage.samples(assemble.benchmarks)})
    return changes
