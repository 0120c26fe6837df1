"""A run as a TOML file: strict models, checked before anything heavy is imported.

`load` reads and checks a recipe; every mistake is one line that names the key, what was given and what is allowed.
What each key means is written here once, as the description of its field, with its unit and, in brackets, where the
default comes from; `docs/recipes.md` is made from it (`pathor1.recipe_docs`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from pathor1.errors import RecipeError
from pathor1.prompts import SystemPrompt
from pathor1.recipe_errors import explain
from pathor1.recipe_rl import RL, RolloutEngine
from pathor1.recipe_table import Count, NotNegative, Positive, PositiveNumber, T, Table
from pathor1.recipe_tree import read
from pathor1.training import WarmStart

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?")


def run_name(name: str) -> str:
    """The name itself. Raises ValueError where it cannot name a run's folder and its Ray job."""
    if not _NAME.fullmatch(name):
        raise ValueError("must be 1 to 47 of a-z, 0-9 and hyphens, with no hyphen first or last")
    return name


COLUMNS = ("source", "task", "subfield", "split", "level")


def column(name: str) -> str:
    """The name itself. Raises ValueError where it is no column that questions can be told apart by."""
    if name not in COLUMNS and not (name.startswith("meta.") and len(name) > len("meta.")):
        raise ValueError(f"{name!r} is none of {', '.join(COLUMNS)} and meta.NAME")
    return name


class Model(Table):
    """The model that is trained, and how its layers run."""

    path: str = Field(
        min_length=1, description="Hugging Face folder, or a hub's name such as `Qwen/Qwen2.5-VL-7B-Instruct`."
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="Type of the weights in forward passes and in vLLM; on a CPU, float32. [verl]"
    )
    gradient_checkpointing: bool = Field(
        default=True,
        description="Activations are computed again in the backward pass: a third more time, much less memory. [verl]",
    )
    attention: Literal["sdpa", "flash_attention_2"] = Field(
        default="sdpa",
        description="Attention of the trained model; flash_attention_2 needs its package, a GPU and bfloat16.",
    )


class Files(Table):
    """Files that are trained on, and how much of each."""

    train: list[str] = Field(
        min_length=1,
        description="Parquet files of samples, folders of such files, or globs; on disk, `s3://` or `gs://`.",
    )
    weights: list[PositiveNumber] = Field(
        default=[],
        description="A number for each entry of train: its samples' share of all. Each entry then has epochs of its "
        "own. Not set = every sample once in an epoch of all.",
    )

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if self.weights and len(self.weights) != len(self.train):
            raise ValueError(
                f"weights has {len(self.weights)} numbers and train {len(self.train)} entries; give one for each, or "
                "none"
            )
        return self


class Samples(Files):
    """Which samples a stage takes, and what becomes of their pictures."""

    system_prompt: SystemPrompt = Field(
        default="chain_of_thought",
        description="One of the two published prompts of Patho-R1, or none. [Patho-R1's README]",
    )
    min_pixels: Positive = Field(
        default=3136, description="Smaller pictures are enlarged to this many pixels. [Qwen2.5-VL]"
    )
    max_pixels: Positive = Field(
        default=501760,
        description="Larger pictures are reduced to this many pixels; 784 are an image token. [our choice: 640 tokens]",
    )
    shuffle: bool = Field(
        default=True, description="Another order in every epoch, a function of the seed and the epoch alone."
    )
    max_bad_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="A run ends when more of an epoch's samples than this share cannot be used. [our choice]",
    )
    workers: Positive = Field(
        default=2, description="Ray Data workers that read, check, decode and resize. [our choice]"
    )

    @model_validator(mode="after")
    def _pixels(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"data.min_pixels = {self.min_pixels} is above data.max_pixels = {self.max_pixels}")
        return self


class Data(Samples):
    """Which samples are trained on, and what becomes of their pictures and questions."""

    test: list[str] = Field(default=[], description="Held-out samples for evaluation, in the same forms.")
    tasks: list[Literal["mcq", "yes_no"]] = Field(
        default=["mcq", "yes_no"], min_length=1, description="Tasks that are trained on; other samples are passed over."
    )
    max_prompt_tokens: Positive = Field(
        default=1024, description="Longest prompt in tokens, those of its pictures among them. [verl's geo3k script]"
    )


class Cluster(Table):
    """What the run takes of the Ray cluster."""

    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="auto: what the installed torch is built for."
    )
    nodes: Positive = Field(default=1, description="Nodes that train and generate.")
    accelerators_per_node: Positive = Field(default=8, description="GPUs of each; on a CPU, training processes.")
    object_store_gb: PositiveNumber | None = Field(
        default=None,
        description="Ray's shared memory in GB, where the run starts Ray itself, and of each node that "
        "`pathor1 cluster render` asks for; not set = Ray's own choice.",
    )
    max_restarts: Count = Field(
        default=3,
        description="How often a run that has begun to train starts again, behind its last checkpoint, when one of "
        "its processes or nodes dies or hangs. [our choice]",
    )
    wait_for_nodes: NotNegative = Field(
        default=90.0,
        description="Seconds that a run which is started again waits for a node in the place of one that it has lost; "
        "a cluster that grows by itself may take minutes. [our choice]",
    )
    stop_grace: PositiveNumber = Field(
        default=120.0,
        description="Seconds that a run has, when it is asked to stop, to finish or abandon what it does and to save a "
        "checkpoint; a job that is not submitted by `pathor1 submit` needs RAY_JOB_STOP_WAIT_TIME_S, too, as Ray ends "
        "it after 3 seconds. [our choice]",
    )
    hang_after: PositiveNumber = Field(
        default=1800.0,
        description="Seconds after which a phase of a step that also takes ten times as long as it usually does counts "
        "as hung: the run starts again. [our choice]",
    )
    secrets: list[str] = Field(
        default=[],
        description="Names of environment variables that the run needs and whose values nobody else may read, such as "
        "`WANDB_API_KEY`: every node has to have them in its own environment, which is looked at first.",
    )

    @property
    def all_nodes(self) -> int:
        """Nodes of accelerators_per_node that are enough for all of the run."""
        return self.nodes

    @model_validator(mode="after")
    def _names(self) -> Self:
        for place, name in enumerate(self.secrets, start=1):
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):  # which is not shown: it may hold the secret
                raise ValueError(f"cluster.secrets: entry {place} is not the name of an environment variable")
        return self


class RLCluster(Cluster):
    """What the run takes of the Ray cluster."""

    rollout_accelerators: Count = Field(
        default=0,
        description="With rl.mode = separate_async: GPUs, or on a CPU processes, of vLLM alone, beside those that "
        "train; each engine's are on one node, whichever has them free.",
    )

    @property
    def all_nodes(self) -> int:
        return self.nodes + -(-self.rollout_accelerators // self.accelerators_per_node)


class Evaluation(Table):
    """How models are evaluated. Each question is answered greedily, and again as these say."""

    max_new_tokens: Positive | None = Field(
        default=None, description="Longest answer in tokens; not set = rl.max_response_tokens."
    )
    samples: Positive | None = Field(default=None, description="Questions of each test file, its first; not set = all.")
    sampled_answers: Count = Field(
        default=0,
        description="Answers that are sampled to each closed question beside the greedy one: how often they are right, "
        "the majority's answer, and pass@k. [our choice: none]",
    )
    temperature: PositiveNumber = Field(default=1.0, description="Of the sampled answers. [DAPO]")
    checks: list[Literal["removed_pictures", "shuffled_pictures", "shuffled_options"]] = Field(
        default=["shuffled_pictures"],
        description="The questions asked again without their pictures, with another question's, and with their options "
        "in another order: what a model does not see, it does not know. [our choice]",
    )
    by: list[str] = Field(
        default=[],
        description="Accuracy is also told by each of these: `source`, `task`, `subfield`, `split`, `level`, or "
        "`meta.NAME`, an entry of the samples' meta.",
    )

    @field_validator("by")
    @classmethod
    def _are_columns(cls, names: list[str]) -> list[str]:
        return [column(name) for name in names]


class RunTable(Table):
    """What the recipe of every run begins with."""

    name: str = Field(description="Names the run's folder and its Ray job: a-z, 0-9 and hyphens, at most 47.")
    runs_dir: str = Field(default="runs", min_length=1, description="Folder in which run folders are made.")
    trackers: list[Literal["wandb", "mlflow"]] = Field(
        default=[],
        description="Where the run's metrics go beside its folder, TensorBoard's files and Ray's own metrics; the "
        "package has to be installed, and finds its server and key in its own environment variables (WANDB_API_KEY, "
        "MLFLOW_TRACKING_URI; with WANDB_MODE=offline nothing is sent). A run that cannot write there does not start.",
    )

    _is_name = field_validator("name")(run_name)


class EvaluationTable(Table):
    """What the recipe of every evaluation begins with."""

    name: str = Field(description="Names the evaluation's folder: a-z, 0-9 and hyphens, at most 47.")
    runs_dir: str = Field(default="runs", min_length=1, description="Folder in which that folder is made.")

    _is_name = field_validator("name")(run_name)


class Recipe(RunTable):
    """The run itself."""

    seed: Count = Field(default=0, description="Of the order of the data, of sampling and of initialisation.")
    model: Model
    data: Data
    rl: RL
    rollout: RolloutEngine = RolloutEngine()
    cluster: RLCluster = RLCluster()
    warm_start: WarmStart | None = None
    evaluation: Evaluation = Evaluation()
    verl: dict[str, Any] = Field(
        default={}, description="Any other key of verl's config, by its dotted name; it is checked against verl's own."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        ranks = self.cluster.nodes * self.cluster.accelerators_per_node
        answers = self.rl.prompts_per_update * self.rl.group_size
        if answers % ranks:
            raise ValueError(
                f"rl.prompts_per_update x rl.group_size = {answers} answers do not divide among "
                f"cluster.nodes x cluster.accelerators_per_node = {ranks}"
            )
        self._refuse_engines(ranks)
        if self.rl.evaluate_every and not self.data.test:
            raise ValueError(
                f"rl.evaluate_every = {self.rl.evaluate_every} needs held-out samples; name their files in data.test"
            )
        longest = self.data.max_prompt_tokens + self.rl.max_response_tokens
        if self.rl.max_tokens_per_update < longest:
            raise ValueError(
                f"rl.max_tokens_per_update = {self.rl.max_tokens_per_update} is below data.max_prompt_tokens + "
                f"rl.max_response_tokens = {longest}; the longest answer has to fit"
            )
        if self.model.attention == "flash_attention_2" and self.model.dtype == "float32":
            raise ValueError('model.attention = "flash_attention_2" does not run with model.dtype = "float32"')
        return self

    def _refuse_engines(self, ranks: int) -> None:
        """Raises ValueError where vLLM's engines cannot be on the accelerators that the mode has for them."""
        each, spread = self.cluster.accelerators_per_node, self.rollout.tensor_parallel
        own, mode = self.cluster.rollout_accelerators, self.rl.mode
        if mode != "separate_async":
            if own:
                raise ValueError(
                    f'cluster.rollout_accelerators = {own} needs rl.mode = "separate_async"; in mode {mode} the '
                    "accelerators that train generate, too"
                )
            if ranks % spread:
                raise ValueError(
                    f"cluster.nodes x cluster.accelerators_per_node = {ranks} is not a multiple of "
                    f"rollout.tensor_parallel = {spread}"
                )
            if each % spread and spread % each:
                raise ValueError(
                    f"cluster.accelerators_per_node = {each} is no multiple of rollout.tensor_parallel = {spread}, nor "
                    "the other way round: one engine would lie on parts of two nodes"
                )
            return
        if own == 0:
            raise ValueError(
                'rl.mode = "separate_async" needs accelerators that train and others that generate, two at least; set '
                "cluster.rollout_accelerators"
            )
        if own % spread:
            raise ValueError(
                f"cluster.rollout_accelerators = {own} is not a multiple of rollout.tensor_parallel = {spread}"
            )
        if self.rl.min_groups > self.rl.prompts_per_update:
            raise ValueError(
                f"rl.min_groups = {self.rl.min_groups} is above rl.prompts_per_update = {self.rl.prompts_per_update}: "
                'with rl.mode = "separate_async" a step learns from so many groups at a time'
            )


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe. `overrides` are `key=value` with dotted keys and TOML values ("rl.group_size=8").

    Raises RecipeError for a file that is missing or no TOML, an unknown key, a wrong value, or values that do not fit
    each other.
    """
    return checked(Recipe, *read(path, overrides), path)


def checked(kind: type[T], tree: Mapping[str, Any], overridden: Sequence[str], path: str | Path) -> T:
    """A tree of tables as a recipe of its kind. `overridden`: the keys that the command line has set.

    Raises RecipeError for an unknown key, a wrong value, or values that do not fit each other.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        key, text = explain(error, list(keys(kind)))
        blamed = any(key == name or key.startswith(f"{name}[") or name.startswith(f"{key}.") for name in overridden)
        raise RecipeError(f"{'--set' if blamed else path}: {text}") from error


def to_toml(recipe: Table) -> str:
    """The recipe with every value written out; `load` reads it back as the same recipe.

    TOML has no word for nothing: keys that are not set, such as the algorithm's own numbers, are left out.
    """
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def keys(table: type[Table] = Recipe, prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted key -> pydantic's field, for every key that a recipe can have."""
    found: dict[str, FieldInfo] = {}
    for name, field in table.model_fields.items():
        child = table_of(field)
        if child is None:
            found[f"{prefix}{name}"] = field
        else:
            found.update(keys(child, f"{prefix}{name}."))
    return found


def table_of(field: FieldInfo) -> type[Table] | None:
    """The model of a field that is a table itself, None for one that is a value."""
    choices = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((choice for choice in choices if isinstance(choice, type) and issubclass(choice, Table)), None)
