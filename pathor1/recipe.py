"""A run as a TOML file: strict models, checked before anything heavy is imported.

`load` reads and checks a recipe; every mistake is one line that names the key, what was given and what is allowed. What
each key means is written here once, as the description of its field; `docs/recipes.md` is made from it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pathor1.errors import RecipeError
from pathor1.prompts import SystemPrompt

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class Table(BaseModel):
    """A table of a recipe: unknown keys fail, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Table):
    """Which model is trained, and how its layers run."""

    path: str = Field(description="Hugging Face folder, or a hub's name such as Qwen/Qwen2.5-VL-7B-Instruct.")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Type of the weights in forward passes and in vLLM. On a CPU: float32."
    )
    gradient_checkpointing: bool = Field(True, description="Recompute activations in the backward pass to save memory.")
    attention: Literal["sdpa", "flash_attention_2"] = Field(
        "sdpa", description="Attention of the trained model; flash_attention_2 needs its package and a GPU."
    )


class Data(Table):
    """Which samples are trained on, and what becomes of their pictures and questions."""

    train: list[str] = Field(min_length=1, description="Parquet files of samples, folders of them, or globs.")
    test: list[str] = Field(default=[], description="Held-out samples, for evaluation; in the same forms.")
    tasks: list[Literal["mcq", "yes_no"]] = Field(
        default=["mcq", "yes_no"], min_length=1, description="Tasks that are trained on; other samples are passed over."
    )
    system_prompt: SystemPrompt = Field(
        "chain_of_thought", description="chain_of_thought and chain_of_draft are the published prompts of Patho-R1."
    )
    max_prompt_tokens: Positive = Field(1024, description="Longest prompt, its image tokens counted. [verl geo3k]")
    min_pixels: Positive = Field(3136, description="Smaller pictures are enlarged to this many pixels. [Qwen2.5-VL]")
    max_pixels: Positive = Field(
        501760, description="Larger pictures are reduced to this many pixels: 640 image tokens. [our choice]"
    )
    shuffle: bool = Field(True, description="Another order every epoch, a function of seed and epoch alone.")
    workers: Positive = Field(2, description="Ray Data workers that read, check and resize.")

    @model_validator(mode="after")
    def _pixels(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels = {self.min_pixels} is above max_pixels = {self.max_pixels}")
        return self


class Reward(Table):
    """The weights of the reward's parts; those left out are the algorithm's."""

    format: NotNegative | None = Field(None, description="Weight of the format reward. [default of both presets: 1]")
    accuracy: NotNegative | None = Field(None, description="Weight of the accuracy reward. [both presets: 1]")
    length: NotNegative | None = Field(None, description="Weight of the soft overlong punishment. [GRPO 0, DAPO 1]")
    overlong_cache_tokens: Positive = Field(
        512, description="The punishment begins this many tokens before max_response_tokens. [DAPO: a fifth of it]"
    )


class RL(Table):
    """Reinforcement learning: the algorithm, its sizes, and the optimizer."""

    algorithm: Literal["grpo", "dapo"] = Field("grpo", description="The preset whose numbers the keys below override.")
    steps: Positive = Field(description="Steps; each generates, scores and learns from prompts_per_step groups.")
    prompts_per_step: Positive = Field(128, description="Questions a step. [verl-recipe DAPO Qwen2.5-VL-7B: 128]")
    group_size: Annotated[int, Field(ge=2)] = Field(
        8, description="Answers to each question, compared with each other. [verl-recipe DAPO Qwen2.5-VL-7B: 8]"
    )
    prompts_per_update: Positive = Field(
        32, description="Questions in each optimizer update; a step makes prompts_per_step / prompts_per_update."
    )
    max_response_tokens: Positive = Field(2048, description="Longest answer. [Patho-R1's README, inference: 2048]")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-6, description="Of AdamW, constant. [DAPO, verl: 1e-6]")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Steps over which the rate rises. [verl: 0]")
    weight_decay: NotNegative = Field(0.01, description="Of AdamW. [verl: 0.01]")
    max_gradient_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradients are clipped to it. [verl: 1]")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Of the answers that are learned from. [DAPO]")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Of the same. [DAPO: 1]")
    clip_low: Fraction | None = Field(None, description="ε_low. [both presets: 0.2]")
    clip_high: NotNegative | None = Field(None, description="ε_high. [GRPO 0.2, DAPO 0.28]")
    loss_aggregation: Literal["sequence-mean", "token-mean"] | None = Field(
        None, description="Mean over each answer and then over answers, or over all tokens. [paper, figure 2]"
    )
    kl_coefficient: NotNegative | None = Field(
        None, description="β of the KL term to the frozen reference; 0 = no reference model. [GRPO 0.01, DAPO 0]"
    )
    dynamic_sampling: bool | None = Field(
        None, description="Replace groups whose answers are all right or all wrong. [GRPO off, DAPO on]"
    )
    reward: Reward = Field(default=Reward(), description="Weights of the reward's parts.")
    max_tokens_per_update: Positive = Field(
        16384, description="Tokens in one forward and backward pass of one accelerator; bounds its memory."
    )
    save_every: Positive = Field(20, description="Steps between checkpoints; the last step is always saved.")
    keep_checkpoints: Positive = Field(2, description="Older checkpoints are removed.")
    max_probability_difference: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="The run stops when a token's probability differs by more between vLLM and the actor; none = it "
        "is only reported. In float32 1e-3 holds; bfloat16 differs by more by nature.",
    )

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.prompts_per_step % self.prompts_per_update:
            raise ValueError(
                f"prompts_per_step = {self.prompts_per_step} is not a multiple of prompts_per_update = "
                f"{self.prompts_per_update}"
            )
        if self.reward.overlong_cache_tokens > self.max_response_tokens:
            raise ValueError(
                f"reward.overlong_cache_tokens = {self.reward.overlong_cache_tokens} is above max_response_tokens = "
                f"{self.max_response_tokens}"
            )
        return self


class RolloutEngine(Table):
    """vLLM, which generates."""

    tensor_parallel: Positive = Field(1, description="Accelerators over which one engine spreads the model.")
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.6, description="Share of the accelerator's memory for weights and KV cache. [verl geo3k: 0.6] GPU only."
    )
    max_sequences: Positive = Field(256, description="Answers that one engine generates at a time. [verl: 256]")
    max_batched_tokens: Positive = Field(8192, description="Tokens in one forward pass of the engine. [verl: 8192]")
    enforce_eager: bool = Field(False, description="Do not compile and capture graphs: slower, starts sooner.")
    cpu_kv_cache_gb: Positive = Field(1, description="KV cache of one engine in GB. CPU only.")


class Cluster(Table):
    """What the run takes of the Ray cluster."""

    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: what torch is built for.")
    nodes: Positive = Field(1, description="Nodes with accelerators.")
    accelerators_per_node: Positive = Field(8, description="GPUs on each; on a CPU, training processes.")
    object_store_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Ray's shared memory, where the run starts Ray itself; none = Ray's own choice."
    )


class WarmStart(Table):
    """The supervised stage before RL: it teaches the format, on Ray Train with DeepSpeed."""

    model: str = Field(description="The model it starts from; [model] path of the recipe is where RL starts.")
    data: list[str] = Field(min_length=1, description="Samples with explanations; in the forms of data.train.")
    steps: Positive = Field(description="Optimizer steps.")
    batch_size: Positive = Field(32, description="Samples a step, over all workers.")
    workers: Positive = Field(2, description="Training processes.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Highest rate of AdamW. [LLaMA-Factory]")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(20, description="Steps over which the rate rises to it.")
    final_learning_rate_fraction: Fraction = Field(
        0.1, description="The rate falls along a cosine to this share of its highest."
    )
    weight_decay: NotNegative = Field(0.01, description="Of AdamW.")
    zero_stage: Annotated[int, Field(ge=0, le=3)] = Field(2, description="DeepSpeed ZeRO: what is partitioned.")
    max_tokens: Positive = Field(2048, description="Longest sample, prompt and answer. A longer one is an error.")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size = {self.batch_size} is not a multiple of workers = {self.workers}")
        return self


class Recipe(Table):
    """One run."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?$",
        description="Names the run's folder and its Ray job: lower case letters, digits, hyphens, at most 47.",
    )
    runs_dir: str = Field("runs", description="Where run folders are made.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of data order, sampling and initialisation.")
    model: Model
    data: Data
    rl: RL
    rollout: RolloutEngine = RolloutEngine()
    cluster: Cluster = Cluster()
    warm_start: WarmStart | None = None
    verl: dict[str, Any] = Field(
        default={}, description="Any other key of verl's config, by its dotted name, checked against verl."
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        ranks = self.cluster.nodes * self.cluster.accelerators_per_node
        rollouts = self.rl.prompts_per_update * self.rl.group_size
        if rollouts % ranks:
            raise ValueError(
                f"rl.prompts_per_update x rl.group_size = {rollouts} answers do not divide among "
                f"cluster.nodes x cluster.accelerators_per_node = {ranks} accelerators"
            )
        if ranks % self.rollout.tensor_parallel:
            raise ValueError(
                f"cluster.nodes x cluster.accelerators_per_node = {ranks} is not a multiple of "
                f"rollout.tensor_parallel = {self.rollout.tensor_parallel}"
            )
        return self


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe. `overrides` are `key=value` with dotted keys and TOML values ("rl.group_size=8").

    Raises RecipeError for a file that is missing or no TOML, an unknown key, a wrong value, or values that do not fit
    each other.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; ray_jobs/recipes/ holds some to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error
    for override in overrides:
        _override(tree, override)
    if "verl" in tree:
        tree["verl"] = _flat(tree["verl"])
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(error)}") from error


def _override(tree: dict[str, Any], text: str) -> None:
    key, separator, raw = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise RecipeError(f"--set {text}: write it as key=value, for example --set rl.group_size=8")
    table = tree
    *parents, last = key.split(".")
    for parent in parents:
        child = table.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {text}: {parent} is a value, not a table")
        table = child
    table[last] = _toml_value(raw.strip())


def _toml_value(raw: str) -> Any:
    """A TOML value, or, where it is none, the text itself: `--set name=test` needs no quotes."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def to_toml(recipe: Recipe) -> str:
    """The recipe with every value written out; `load` reads it back as the same recipe. Values of none are left out."""
    return tomli_w.dumps(_without_none(recipe.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return value


def keys(table: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> pydantic field, for every key a recipe can have."""
    found: dict[str, Any] = {}
    for name, field in table.model_fields.items():
        child = _table_of(field.annotation)
        if child is not None:
            found.update(keys(child, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = field
    return found


def _table_of(annotation: Any) -> type[BaseModel] | None:
    choices = (annotation, *getattr(annotation, "__args__", ()))
    return next((choice for choice in choices if isinstance(choice, type) and issubclass(choice, Table)), None)


def explain(error: ValidationError) -> str:
    """pydantic's errors as one line: the first, and how many more there are."""
    problems = error.errors()
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    dotted = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        text = f"unknown key {dotted}{_nearest(dotted)}"
    elif first["type"] == "missing":
        text = f"{dotted} is missing"
    elif first["type"] == "value_error":
        text = f"{dotted + ': ' if dotted else ''}{first['msg'].removeprefix('Value error, ')}"
    else:
        text = f"{dotted} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def _nearest(dotted: str) -> str:
    """", did you mean ...": the nearest key in the same table, else anywhere."""
    table, _, last = dotted.rpartition(".")
    prefix = f"{table}." if table else ""
    known = list(keys())
    siblings = {key.removeprefix(prefix).split(".")[0] for key in known if key.startswith(prefix)}
    near = difflib.get_close_matches(last, sorted(siblings), n=1)
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    by_last = {key.rsplit(".", 1)[-1]: key for key in known}
    near = difflib.get_close_matches(last, list(by_last), n=1)
    return f"; did you mean {by_last[near[0]]}?" if near else f"; the keys are listed in docs/recipes.md"
