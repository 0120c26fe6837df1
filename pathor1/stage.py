"""A supervised stage as a TOML file: continued pretraining (`[cpt]`) or fine-tuning (`[sft]`), in a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from pathor1 import contrastive
from pathor1.contrastive import ClipRecipe, is_clip, is_clip_evaluation
from pathor1.errors import RecipeError
from pathor1.recipe import Cluster, Model, Recipe, RunTable, Samples, checked
from pathor1.recipe import load as run_recipe
from pathor1.recipe_table import Count
from pathor1.recipe_tree import read
from pathor1.samples import Task
from pathor1.training import Stage

StageName = Literal["cpt", "sft"]
STAGES: tuple[StageName, ...] = ("cpt", "sft")
# Captions teach what is seen; everything else is taught as an answer that reasons first.
TASKS: dict[StageName, tuple[Task, ...]] = {"cpt": ("caption",), "sft": ("mcq", "yes_no", "open", "conversation")}


class StageModel(Model):
    """The model that is trained, and how its layers run."""

    path: str = Field(
        min_length=1,
        description="Hugging Face folder, a hub's name, or the run folder of the stage before: its last checkpoint.",
    )


class StageData(Samples):
    """Which samples are trained on, and what becomes of their pictures."""

    tasks: list[Task] = Field(
        default=[],
        description="Tasks that are trained on; other samples are passed over. Not set = `caption` in continued "
        "pretraining, all others in fine-tuning. A caption is taught as it is, without a system prompt.",
    )


class StageRecipe(RunTable):
    """The run of a supervised stage. A recipe with the table `[cpt]` or `[sft]` is one of these."""

    seed: Count = Field(default=0, description="Of the order of the data, and of the adapters' initialisation.")
    model: StageModel
    data: StageData
    cpt: Stage | None = None
    sft: Stage | None = None
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.cpt is None) == (self.sft is None):
            raise ValueError("needs one of the tables [cpt] and [sft]: a stage is a run, with a recipe of its own")
        if self.model.attention == "flash_attention_2" and self.model.dtype == "float32":
            raise ValueError('model.attention = "flash_attention_2" does not run with model.dtype = "float32"')
        return self

    @property
    def stage(self) -> StageName:
        """Which of the two it is."""
        return "sft" if self.cpt is None else "cpt"

    @property
    def training(self) -> Stage:
        """The stage's table."""
        training = self.sft if self.cpt is None else self.cpt
        assert training is not None
        return training

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that are trained on."""
        return tuple(self.data.tasks) or TASKS[self.stage]

    @property
    def workers(self) -> int:
        """Training processes."""
        return self.cluster.nodes * self.cluster.accelerators_per_node


def load(path: str | Path, overrides: Sequence[str] = ()) -> StageRecipe:
    """Reads a stage's recipe, as `pathor1.recipe.load` does a run's. Raises RecipeError."""
    return checked(StageRecipe, *read(path, overrides), path)


# The recipe of a run: by RL, of a stage, or of contrastive training.
RunRecipe = Recipe | StageRecipe | ClipRecipe


def job_of(recipe: RunRecipe) -> str:
    """The module of `ray_jobs` that runs it: rl, cpt, sft or clip."""
    if isinstance(recipe, ClipRecipe):
        return "clip"
    return recipe.stage if isinstance(recipe, StageRecipe) else "rl"


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunRecipe:
    """Reads the recipe of a run, of any kind. Raises RecipeError, also for one that is of no run."""
    if is_clip(path, overrides):
        return contrastive.load(path, overrides)
    if table := is_clip_evaluation(path, overrides):
        raise RecipeError(f"{path}: is of an evaluation; `pathor1 clip {table.replace('_', '-')} {path}` makes it")
    return load(path, overrides) if is_stage(path, overrides) else run_recipe(path, overrides)


def steps_of(recipe: RunRecipe) -> int:
    """The steps of a run."""
    if isinstance(recipe, ClipRecipe):
        return recipe.steps
    return recipe.training.steps if isinstance(recipe, StageRecipe) else recipe.rl.steps


def kind_of(recipe: RunRecipe) -> str:
    """What a run is: GRPO, DAPO, CPT, SFT or CLIP."""
    return recipe.rl.algorithm.upper() if isinstance(recipe, Recipe) else job_of(recipe).upper()


def is_stage(path: str | Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a recipe is a stage's. Raises RecipeError for a file that is missing or no TOML."""
    tree, _ = read(path, overrides)
    return any(name in tree for name in STAGES)
