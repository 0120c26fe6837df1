"""A run as a TOML file: strict models, checked before anything heavy is imported.

`load` reads and checks a recipe; every mistake is one line that names the key, what was given and what is allowed.
What each key means is written here once, as the description of its field, with its unit and, in brackets, where the
default comes from; `docs/recipes.md` is made from it (`pathor1.recipe_docs`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from pathor1.errors import RecipeError
from pathor1.prompts import SystemPrompt
from pathor1.recipe_errors import explain
from pathor1.recipe_table import Count, Fraction, NotNegative, Positive, PositiveNumber, T, Table
from pathor1.recipe_tree import read
from pathor1.training import WarmStart

# Metrics of which more is better (`pathor1.rl.metrics`).
BestBy = Literal["reward/accuracy", "reward/mean", "reward/format", "reward/length", "evaluation/accuracy"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?")
_FUNCTION = re.compile(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|.+\.py):[A-Za-z_]\w*")
_STORE = re.compile(r"(s3|gs)://[^/*?\[\s]+(/[^*?\[]*)?")


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


class Reward(Table):
    """The weights of the reward's parts. One that is not set is the algorithm's."""

    format: NotNegative | None = Field(
        default=None, description="Weight of the format reward, which is 0 or 1. [both algorithms: 1]"
    )
    accuracy: NotNegative | None = Field(
        default=None, description="Weight of the accuracy reward, which is 0 or 1. [both: 1]"
    )
    length: NotNegative | None = Field(
        default=None, description="Weight of the soft overlong punishment, which is -1 to 0. [grpo 0, dapo 1]"
    )
    overlong_cache_tokens: Positive = Field(
        default=512,
        description="The punishment begins this many tokens below max_response_tokens. [our choice: a quarter of 2048]",
    )
    min_think_words: Positive = Field(
        default=8,
        description="Answers in the right format that reason in fewer words are counted, as "
        "rollout/without_reasoning; no reward depends on it. [our choice]",
    )
    function: str | None = Field(
        default=None,
        description="A function of your own in the place of the accuracy reward: `module:name` or "
        "`path/to/file.py:name`, see [rewards](rewards.md). Not set = the built-in rules.",
    )
    function_timeout: PositiveNumber = Field(
        default=10.0, description="Seconds for one call of it; a group that takes longer is dropped. [our choice]"
    )

    @field_validator("function")
    @classmethod
    def _is_function(cls, function: str | None) -> str | None:
        if function is not None and not _FUNCTION.fullmatch(function):
            raise ValueError('is neither "module:name" nor "path/to/file.py:name"')
        return function


class RL(Table):
    """Reinforcement learning: the algorithm, its sizes, the optimizer. What is not set is the algorithm's own."""

    algorithm: Literal["grpo", "dapo"] = Field(
        default="grpo",
        description="The preset that the keys from clip_low to dynamic_sampling, and the reward's weights, override.",
    )
    mode: Literal["sync", "colocate_async", "separate_async"] = Field(
        default="sync",
        description="How generating and learning take turns: `sync`, one after the other; `colocate_async`, a step "
        "learns as soon as enough groups are there, and what vLLM has under way goes on behind it; `separate_async`, "
        "vLLM generates all the time, on cluster.rollout_accelerators. See "
        "[algorithms](algorithms.md#asynchronous-modes). [verl]",
    )
    steps: Positive = Field(description="Steps; each generates, scores and learns from prompts_per_step groups.")
    prompts_per_step: Positive = Field(
        default=128, description="Questions a step. [verl-recipe, DAPO on Qwen2.5-VL-7B]"
    )
    group_size: Annotated[int, Field(ge=2)] = Field(
        default=8,
        description="Answers to one question, which are compared with each other. [verl-recipe, DAPO on Qwen2.5-VL-7B]",
    )
    prompts_per_update: Positive = Field(
        default=32,
        description="Questions an optimizer update; a step makes prompts_per_step / prompts_per_update. [our choice]",
    )
    max_response_tokens: Positive = Field(
        default=2048, description="Longest answer in tokens. [Patho-R1's README, inference]"
    )
    learning_rate: PositiveNumber = Field(
        default=1e-6, description="Of AdamW, constant after the warm-up. [DAPO, verl]"
    )
    warmup_steps: Count = Field(default=0, description="Steps over which the learning rate rises from 0. [verl]")
    weight_decay: NotNegative = Field(default=0.01, description="Of AdamW. [verl]")
    max_gradient_norm: PositiveNumber = Field(default=1.0, description="Gradients are clipped to this norm. [verl]")
    temperature: PositiveNumber = Field(default=1.0, description="Of the answers that are learned from. [DAPO]")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="They are sampled from the likeliest tokens with this total probability. [DAPO]"
    )
    clip_low: Fraction | None = Field(
        default=None, description="ε_low: the probability ratio is clipped below 1 - clip_low. [both algorithms: 0.2]"
    )
    clip_high: NotNegative | None = Field(
        default=None, description="ε_high: and above 1 + clip_high. [grpo 0.2, dapo 0.28]"
    )
    loss_aggregation: Literal["sequence-mean", "token-mean"] | None = Field(
        default=None,
        description="The mean over each answer and then over answers, or over all tokens. "
        "[grpo sequence-mean, dapo token-mean: the paper, figure 2]",
    )
    kl_coefficient: NotNegative | None = Field(
        default=None,
        description="β of the KL term to the frozen reference; 0 = no reference model is loaded. [grpo 0.01, dapo 0]",
    )
    dynamic_sampling: bool | None = Field(
        default=None,
        description="Groups whose answers are all right or all wrong are replaced by others. [grpo false, dapo true]",
    )
    keep_pass_rate: list[Fraction] = Field(
        default=[0.0, 1.0],
        description="With dynamic_sampling: [low, high], the share of right answers that a group has to have to be "
        "learned from, beside a difference. [our choice: any]",
    )
    max_generated_groups: Annotated[float, Field(ge=1)] = Field(
        default=4.0,
        description="With dynamic_sampling: the most groups a step may ask for, as a multiple of prompts_per_step. "
        "[our choice; verl has no bound]",
    )
    min_groups: Positive = Field(
        default=1, description="When that is spent, a step with fewer informative groups makes no update. [our choice]"
    )
    max_carry_steps: Count | None = Field(
        default=None,
        description="Steps from the one that asks a question to the one that learns from its group, its importance "
        "corrected, at most; 0 = none, and an informative group beyond prompts_per_step is dropped. "
        "[our choice: sync 1, the others 2]",
    )
    revisit_every: Positive = Field(
        default=1,
        description="A question whose answers were all right, or all wrong, each time is asked in one of so many "
        "epochs. [our choice: in each]",
    )
    mask_truncated: bool = Field(
        default=False,
        description="Answers that were cut at max_response_tokens are not learned from, though they count in their "
        "group: DAPO's overlong filtering. [our choice]",
    )
    reward: Reward = Reward()
    max_tokens_per_update: Positive = Field(
        default=16384,
        description="Tokens in one forward and backward pass of one accelerator, which bounds its memory. [verl]",
    )
    save_every: Positive = Field(
        default=20, description="Steps between checkpoints; the last step is always saved. [our choice]"
    )
    keep_checkpoints: Positive = Field(
        default=2, description="Checkpoints that are kept, the newest ones; the best is kept too. [our choice]"
    )
    best_by: BestBy = Field(
        default="reward/accuracy",
        description="The best checkpoint has the highest mean of this metric over the steps since the one before; of "
        "`evaluation/accuracy`, the highest one of its own weights. [our choice]",
    )
    evaluate_every: Count = Field(
        default=0,
        description="Steps between evaluations on data.test within the run, the last step being one of them: greedy "
        "answers of its own vLLM, see [evaluation](evaluation.md). 0 = none. [our choice]",
    )
    evaluate_samples: Annotated[int, Field(gt=0, le=100_000)] = Field(
        default=512,
        description="The most questions that such an evaluation asks: where data.test has more, a sample that the seed "
        "fixes. [our choice: ± 4 points]",
    )
    early_stop_patience: Positive | None = Field(
        default=None,
        description="The run ends when so many evaluations, one after the other, have not had a higher accuracy than "
        "the best one before. Not set = it does all its steps.",
    )
    checkpoint_store: str | None = Field(
        default=None,
        description="Folder in an object store, `s3://BUCKET/...` or `gs://BUCKET/...`: checkpoints are copied there "
        "too, and a run that has none goes on from there. Not set = they are on disk alone.",
    )
    max_probability_difference: PositiveNumber | None = Field(
        default=None,
        description="The run stops where a token's probability differs by more between vLLM and the trained model; "
        "not set = it is only reported. In float32 it stays below 1e-3; in bfloat16 it cannot.",
    )

    @property
    def carry_steps(self) -> int:
        """max_carry_steps, or that of the mode."""
        of_mode = 1 if self.mode == "sync" else 2
        return of_mode if self.max_carry_steps is None else self.max_carry_steps

    @field_validator("checkpoint_store")
    @classmethod
    def _is_store(cls, folder: str | None) -> str | None:
        if folder is not None and not _STORE.fullmatch(folder):
            raise ValueError("must be a folder in an object store, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
        return folder

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.prompts_per_step % self.prompts_per_update:
            raise ValueError(
                f"rl.prompts_per_step = {self.prompts_per_step} is not a multiple of rl.prompts_per_update = "
                f"{self.prompts_per_update}"
            )
        band = self.keep_pass_rate
        if len(band) != 2 or band[0] > band[1]:
            raise ValueError(f"rl.keep_pass_rate = {band} is not [low, high], two numbers with the lower one first")
        if self.min_groups > self.prompts_per_step:
            raise ValueError(
                f"rl.min_groups = {self.min_groups} is above rl.prompts_per_step = {self.prompts_per_step}, so that no "
                "step would ever make an update"
            )
        self._refuse_unevaluated()
        if self.mode != "sync" and self.carry_steps == 0:
            raise ValueError(
                f'rl.mode = "{self.mode}" asks questions before the step that learns from them: rl.max_carry_steps has '
                "to be 1 or more"
            )
        if self.top_p < 1 and self.max_probability_difference is not None:
            raise ValueError(
                f"rl.max_probability_difference needs rl.top_p = 1, not {self.top_p:g}: vLLM's probabilities are then "
                "those of the likeliest tokens alone"
            )
        if self.reward.overlong_cache_tokens >= self.max_response_tokens:
            raise ValueError(
                f"rl.reward.overlong_cache_tokens = {self.reward.overlong_cache_tokens} is not below "
                f"rl.max_response_tokens = {self.max_response_tokens}"
            )
        return self

    def _refuse_unevaluated(self) -> None:
        """Raises ValueError where something hangs on evaluations that the run does not make."""
        by_accuracy = self.best_by == "evaluation/accuracy"
        for key, wanted in (("best_by", by_accuracy), ("early_stop_patience", self.early_stop_patience is not None)):
            if wanted and not self.evaluate_every:
                raise ValueError(
                    f"rl.{key} = {getattr(self, key)} needs evaluations within the run; set rl.evaluate_every"
                )
        if by_accuracy and self.save_every % self.evaluate_every:
            raise ValueError(
                f"rl.best_by = evaluation/accuracy needs an evaluation of each checkpoint: rl.save_every = "
                f"{self.save_every} is not a multiple of rl.evaluate_every = {self.evaluate_every}"
            )


class RolloutEngine(Table):
    """vLLM, which generates the answers."""

    tensor_parallel: Positive = Field(
        default=1, description="Accelerators over which one engine spreads the model. [our choice]"
    )
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.6,
        description="Share of a GPU's memory for vLLM's weights and KV cache; GPU only. [verl's geo3k script]",
    )
    max_sequences: Positive = Field(default=256, description="Answers that one engine generates at a time. [verl]")
    max_batched_tokens: Positive = Field(default=8192, description="Tokens in one forward pass of the engine. [verl]")
    enforce_eager: bool = Field(
        default=False,
        description="No compiling and capturing of graphs: slower, starts sooner; on a CPU always so. [verl]",
    )
    cpu_kv_cache_gb: Positive = Field(default=1, description="KV cache of one engine in GB; CPU only. [our choice]")
    timeout: PositiveNumber = Field(
        default=1800.0,
        description="Seconds for one answer; after that vLLM is told to stop, and its group is dropped as failed. Of "
        "one that was interrupted (rl.mode): for each part, with what it waits for. [our choice]",
    )

    @model_validator(mode="after")
    def _batch(self) -> Self:
        if self.max_sequences > self.max_batched_tokens:
            raise ValueError(
                f"rollout.max_sequences = {self.max_sequences} is above rollout.max_batched_tokens = "
                f"{self.max_batched_tokens}; vLLM needs a token a sequence"
            )
        return self


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
