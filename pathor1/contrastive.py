"""PathoCLIP as TOML files: its contrastive training in one or two stages, and its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pathor1.recipe import Cluster, EvaluationTable, Files, RunTable, Samples, checked
from pathor1.recipe_table import Count, Fraction, NotNegative, Positive, PositiveNumber, Table
from pathor1.recipe_tree import read

# More pixels than a picture may have (`pathor1.data.images`): they come as they are, and are cut to the model's size.
ANY_SIZE = 1 << 40


class ClipModel(Table):
    """The model that is trained: one of open_clip's."""

    architecture: str = Field(
        default="",
        description="open_clip's name, such as `ViT-B-16-quickgelu`, or a JSON file of such a configuration. Not set = "
        "what the folder of weights says.",
    )
    weights: str = Field(
        default="",
        description="What it begins with: the folder of a run or of a model that open_clip has saved, "
        "`hf-hub:OWNER/NAME`, a tag of open_clip's such as `openai`, or a file of weights. Not set = random weights.",
    )
    activation: Literal["gelu", "quick_gelu"] | None = Field(
        default=None,
        description="What a bare file of weights was trained with, which it does not say; OpenAI's with `quick_gelu`. "
        "It has to be the architecture's.",
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="Of forward passes; weights and the loss are float32. [open_clip: amp_bf16]"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Activations are computed again in the backward pass: slower, much less memory."
    )

    @model_validator(mode="after")
    def _is_something(self) -> Self:
        if not self.architecture and not self.weights:
            raise ValueError("model needs an architecture, or the folder of weights that says which it is")
        return self


class Pairs(Table):
    """How pictures with captions are read, in all stages."""

    shuffle: bool = Field(
        default=True, description="Another order in every epoch, a function of the seed and the epoch alone."
    )
    crop: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9,
        description="A picture is cut to a random part of it, of this share of its area or more. [open_clip]",
    )
    left_out: list[str] = Field(
        default=[],
        description="Files that list ids of samples to pass over, as `pathor1 clip leaks --out` writes them.",
    )
    max_bad_fraction: Fraction = Field(
        default=0.01,
        description="A run ends when more of an epoch's samples than this share cannot be used. [our choice]",
    )
    workers: Positive = Field(
        default=2, description="Ray Data workers that read, decode, cut and tokenize. [our choice]"
    )


class Contrast(Files):
    """A stage: what is trained on, for how long, and how. A second stage begins with the first one's weights."""

    steps: Positive = Field(description="Optimizer steps of this stage.")
    batch_size: Positive = Field(
        default=4096,
        description="Pairs a step, over all workers: each is told from all others of the step. [our choice]",
    )
    passes: Positive = Field(
        default=1,
        description="Parts that a worker computes its share of a batch in: less memory, the same loss. Above 1, "
        "features are computed twice. [GradCache, arXiv 2101.06983]",
    )
    learning_rate: PositiveNumber = Field(default=1e-5, description="Highest rate of AdamW. [our choice]")
    warmup_steps: Count = Field(default=100, description="Steps over which the rate rises to it. [our choice]")
    final_learning_rate_fraction: Fraction = Field(
        default=0.0, description="The rate falls along a cosine to this share of its highest. [open_clip]"
    )
    weight_decay: NotNegative = Field(default=0.2, description="Of AdamW; not of gains and biases. [open_clip]")
    max_gradient_norm: PositiveNumber | None = Field(
        default=None, description="Gradients longer than this are cut to it; not set = none is. [open_clip]"
    )
    save_every: Positive = Field(
        default=500, description="Steps between checkpoints; the last of each stage is always saved. [our choice]"
    )


class ClipRecipe(RunTable):
    """A run of contrastive training. A recipe with the table `[stage_1]` is one of these."""

    seed: Count = Field(default=0, description="Of random weights, of the order of the data, and of how it is cut.")
    keep_checkpoints: Positive = Field(
        default=2, description="Checkpoints that are kept, the newest ones; stage 1's last stays too. [our choice]"
    )
    model: ClipModel
    data: Pairs = Pairs()
    stage_1: Contrast
    stage_2: Contrast | None = None
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for number, stage in enumerate(self.stages, start=1):
            parts = self.workers * stage.passes
            if stage.batch_size % parts:
                raise ValueError(
                    f"stage_{number}.batch_size = {stage.batch_size} does not divide into {self.workers} workers with "
                    f"{stage.passes} passes each; choose a multiple of {parts}"
                )
            if stage.batch_size < 2:
                raise ValueError(f"stage_{number}.batch_size = 1: one pair has nothing to be told from")
        return self

    @property
    def stages(self) -> tuple[Contrast, ...]:
        """One or two."""
        return (self.stage_1,) if self.stage_2 is None else (self.stage_1, self.stage_2)

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def workers(self) -> int:
        """Training processes."""
        return self.cluster.nodes * self.cluster.accelerators_per_node

    def samples(self, stage: Contrast) -> Samples:
        """What a stage reads, as the stream takes it."""
        return Samples(
            train=stage.train,
            weights=stage.weights,
            shuffle=self.data.shuffle,
            max_bad_fraction=self.data.max_bad_fraction,
            workers=self.data.workers,
            min_pixels=1,
            max_pixels=ANY_SIZE,
        )


class ZeroShotSet(Table):
    """A set for zero-shot classification."""

    data: list[str] = Field(min_length=1, description="Samples, in the forms of stage_1.train.")
    prompts: str = Field(
        min_length=1,
        description="A file of prompts in CONCH's layout, or one that comes with the project: `lc_lung`, `lc_colon`, "
        "`wsss4luad`, `sicapv2`, `bmt`. Samples of other classes than its own are passed over.",
    )
    label: str = Field(default="class", description="The entry of a sample's meta that has its class.")


class RetrievalSet(Table):
    """A set of pictures with captions."""

    data: list[str] = Field(min_length=1, description="Samples, in the forms of stage_1.train; captions alone count.")
    where: dict[str, list[str]] = Field(
        default={},
        description="Of the samples those alone that have one of these values in each of these entries of their meta, "
        'such as `{ set = ["books_set"] }`.',
    )


class ProbeSet(Table):
    """A set for few-shot classification: training and test files, or one set that is split."""

    train: list[str] = Field(min_length=1, description="Samples, in the forms of stage_1.train.")
    test: list[str] = Field(default=[], description="The same for testing; not set = a part of train.")
    label: str = Field(default="class", description="The entry of a sample's meta that has its class.")
    classes: list[str] = Field(default=[], description="Classes that count; not set = all that there are.")
    group: str = Field(
        default="",
        description="An entry of meta, such as `patient`: where train is split, its samples all go to one side. Not "
        "set = each picture is alone.",
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="The part of train that is kept for testing, where test is not set. [our choice]"
    )
    shots: list[Positive] = Field(
        default=[2, 8, 16, 32, 64, 128], min_length=1, description="Training pictures of each class. [the paper]"
    )
    seeds: Positive = Field(default=10, description="Draws for each number of shots. [the paper]")


class ClipEvaluation(EvaluationTable):
    """Which models are evaluated on which sets. A recipe with `[zero_shot]`, `[retrieval]` or `[probe]` is one."""

    models: dict[str, str] = Field(
        default={},
        description="Name = where: a run's folder (its last checkpoint), a checkpoint, a folder that open_clip has "
        "saved, `hf-hub:OWNER/NAME`, or `ARCHITECTURE@WEIGHTS`.",
    )
    batch_size: Positive = Field(default=64, description="Pictures or texts in one pass of a model. [our choice]")
    threads: Positive = Field(default=4, description="That decode pictures side by side, for each model. [our choice]")
    encoders: Positive | None = Field(
        default=None,
        description="Models that encode pictures side by side; not set = as many as the Ray cluster, or this machine, "
        "has GPUs, and on CPUs one.",
    )
    zero_shot: dict[str, ZeroShotSet] = Field(default={}, description="By the name of the set.")
    retrieval: dict[str, RetrievalSet] = Field(default={}, description="By the name of the set.")
    probe: dict[str, ProbeSet] = Field(default={}, description="By the name of the set.")


def load(path: str | Path, overrides: Sequence[str] = ()) -> ClipRecipe:
    """Reads the recipe of a run, as `pathor1.recipe.load` does. Raises RecipeError."""
    return checked(ClipRecipe, *read(path, overrides), path)


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> ClipEvaluation:
    """Reads the recipe of an evaluation, in the same way. Raises RecipeError."""
    return checked(ClipEvaluation, *read(path, overrides), path)


def is_clip(path: str | Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a recipe is of contrastive training. Raises RecipeError for a file that is missing or no TOML."""
    tree, _ = read(path, overrides)
    return "stage_1" in tree


def is_clip_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> str | None:
    """The first table of sets that an evaluation's recipe has; None = it is none. Raises RecipeError as `is_clip`."""
    tree, _ = read(path, overrides)
    return next((name for name in ("zero_shot", "retrieval", "probe") if name in tree), None)
