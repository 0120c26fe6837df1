"""A benchmark as a TOML file: which models are asked which questions, and how. As strict as a run's recipe.

`of_run` makes one of a run's recipe, so that all evaluations are of this form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pathor1.errors import RecipeError
from pathor1.prompts import SystemPrompt
from pathor1.recipe import Evaluation, EvaluationTable, Recipe, checked, column
from pathor1.recipe_rl import RolloutEngine
from pathor1.recipe_table import Count, Positive, PositiveNumber, Table
from pathor1.recipe_tree import read

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Questions(Table):
    """Which samples are asked, and what becomes of their pictures and questions."""

    test: list[str] = Field(
        min_length=1,
        description="Parquet files of samples, folders of such files, or globs; on disk, `s3://` or `gs://`.",
    )
    tasks: list[Literal["mcq", "yes_no", "open"]] = Field(
        default=["mcq", "yes_no"], min_length=1, description="Tasks that are asked; other samples are passed over."
    )
    system_prompt: SystemPrompt = Field(
        default="chain_of_thought",
        description="One of the two published prompts of Patho-R1, or none. [Patho-R1's README]",
    )
    max_prompt_tokens: Positive = Field(
        default=4096,
        description="Longest prompt in tokens, those of its pictures among them. [our choice: six pictures of 640]",
    )
    min_pixels: Positive = Field(
        default=3136, description="Smaller pictures are enlarged to this many pixels. [Qwen2.5-VL]"
    )
    max_pixels: Positive = Field(
        default=501760, description="Larger pictures are reduced to this many pixels. [our choice: 640 tokens]"
    )

    @model_validator(mode="after")
    def _pixels(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"data.min_pixels = {self.min_pixels} is above data.max_pixels = {self.max_pixels}")
        return self


class Benchmark(Table):
    """How the table is laid out."""

    columns: str = Field(
        default="source",
        description="What the table has a column for each value of: `source`, `task`, `subfield`, `split`, `level`, or "
        "`meta.NAME`, an entry of the samples' meta.",
    )
    where: dict[str, list[str]] = Field(
        default={},
        description="Of the samples those alone that have one of these values in each of these columns, such as "
        '`{ "meta.modality_type" = ["Microscopy Images"] }`.',
    )
    published: str | None = Field(
        default=None,
        description="The benchmark's name in `pathor1/evaluation/published.toml`: its published numbers are shown too.",
    )

    @field_validator("columns")
    @classmethod
    def _is_column(cls, name: str) -> str:
        return column(name)

    @field_validator("where")
    @classmethod
    def _are_columns(cls, where: dict[str, list[str]]) -> dict[str, list[str]]:
        return {column(name): values for name, values in where.items()}


class AnswerEngine(RolloutEngine):
    """vLLM, which generates the answers."""

    # Nobody else uses the GPU, unlike in a run.
    memory_fraction: float = Field(
        default=0.9, gt=0, lt=1, description="Share of a GPU's memory for vLLM's weights and KV cache; GPU only. [vLLM]"
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="Type of the weights; on a CPU always float32. [Qwen2.5-VL]"
    )
    engines: Positive | None = Field(
        default=None,
        description="Engines side by side; not set = as many as the Ray cluster, or this machine, has GPUs for, and on "
        "CPUs one.",
    )


class Requests(Table):
    """Requests to an OpenAI-compatible server."""

    concurrency: Positive = Field(default=16, description="Requests under way at a time. [our choice]")
    timeout_seconds: PositiveNumber = Field(
        default=300.0, description="After which a request is given up, and made again. [our choice]"
    )
    retries: Count = Field(
        default=6,
        description="How often a request is made again after a time-out, a lost connection, HTTP 429 or 5xx: after as "
        "long as the server's Retry-After says, or 0.5 s and twice as long each time. [our choice]",
    )
    key_variable: str = Field(
        default="OPENAI_API_KEY", description="The environment variable that holds the key, where the server wants one."
    )

    # Of the whole table, as the message of one that is of a value shows the value: here it may be the key itself.
    @model_validator(mode="after")
    def _is_variable(self) -> Self:
        if not _VARIABLE.fullmatch(self.key_variable):
            raise ValueError("key_variable has to be the name of an environment variable, which holds the key")
        return self


class Judge(Requests):
    """An OpenAI-compatible model that judges the answers to open questions. Without it they are not judged."""

    url: str = Field(description="Where it is served, such as `https://api.deepseek.com/v1`.")
    model: str = Field(min_length=1, description="Its name there.")
    max_tokens: Positive = Field(
        default=2048, description="Longest verdict in tokens, reasoning before it included. [our choice]"
    )
    attempts: Positive = Field(
        default=3,
        description="How often it is asked for a verdict in all where it is malformed; then the answer is unscored. "
        "[our choice]",
    )

    @model_validator(mode="after")
    def _is_url(self) -> Self:
        check_endpoint(self.url)
        return self


class BenchmarkRecipe(EvaluationTable):
    """The evaluation itself. A recipe with the table `[benchmark]` is one of these, and of no run."""

    seed: Count = Field(
        default=0, description="Of sampled answers, and of which pictures and options are exchanged in the checks."
    )
    models: dict[str, str] = Field(
        default={},
        description="Name = where: a run's folder (its last checkpoint), the folder of a checkpoint or of a Hugging "
        "Face model, a hub's name, or an OpenAI-compatible server, `http://HOST:8000/v1#NAME`.",
    )
    data: Questions
    benchmark: Benchmark
    evaluation: Evaluation = Evaluation()
    rollout: AnswerEngine = AnswerEngine()
    endpoint: Requests = Requests()
    judge: Judge | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for where in self.models.values():
            if is_endpoint(where):
                check_endpoint(where)
        if self.judge is not None and "open" not in self.data.tasks:
            raise ValueError('[judge] is there and data.tasks has no "open", so that there is nothing to judge')
        return self

    @property
    def max_new_tokens(self) -> int:
        """Longest answer in tokens. Default: Patho-R1's README."""
        return self.evaluation.max_new_tokens or 2048


def is_benchmark(path: str | Path) -> bool:
    """Whether a recipe is a benchmark's. Raises RecipeError for a file that is missing or no TOML."""
    return "benchmark" in read(path, ())[0]


def load(path: str | Path, overrides: Sequence[str] = ()) -> BenchmarkRecipe:
    """Reads a benchmark's recipe, as `pathor1.recipe.load` does a run's, and with the same errors."""
    return checked(BenchmarkRecipe, *read(path, overrides), path)


def of_run(recipe: Recipe, models: Mapping[str, str]) -> BenchmarkRecipe:
    """The evaluation of `models` on a run's `data.test`, one column for each source.

    Raises RecipeError where it names no file.
    """
    if not recipe.data.test:
        raise RecipeError("data.test names no file; there is nothing to evaluate on")
    data, evaluation = recipe.data, recipe.evaluation
    length = evaluation.max_new_tokens or recipe.rl.max_response_tokens
    ranks = recipe.cluster.nodes * recipe.cluster.accelerators_per_node
    return BenchmarkRecipe(
        name=recipe.name,
        runs_dir=recipe.runs_dir,
        seed=recipe.seed,
        models=dict(models),
        data=Questions(**{name: getattr(data, name) for name in Questions.model_fields}),
        benchmark=Benchmark(),
        evaluation=evaluation.model_copy(update={"max_new_tokens": length}),
        rollout=AnswerEngine(
            **recipe.rollout.model_dump(),
            dtype=recipe.model.dtype,
            engines=ranks // recipe.rollout.tensor_parallel,
        ),
    )


def is_endpoint(where: str) -> bool:
    """Whether a model is served and not a folder or a hub's."""
    return where.startswith(("http://", "https://"))


def check_endpoint(url: str) -> None:
    """Raises ValueError where it is no URL of a server, or holds a user or a key, which would end in files."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the URL of a server has to be http(s)://HOST/...")
    if parts.username or parts.password or parts.query:
        raise ValueError("the URL of a server may hold no user, key or query: keys come from the environment")
