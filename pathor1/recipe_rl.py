"""A recipe's tables of RL: `[rl]` with `[rl.reward]`, and `[rollout]`, the engine that generates."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pathor1.recipe_table import Count, Fraction, NotNegative, Positive, PositiveNumber, Table

# Metrics of which more is better (`pathor1.rl.metrics`).
BestBy = Literal["reward/accuracy", "reward/mean", "reward/format", "reward/length", "evaluation/accuracy"]

_FUNCTION = re.compile(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|.+\.py):[A-Za-z_]\w*")
_STORE = re.compile(r"(s3|gs)://[^/*?\[\s]+(/[^*?\[]*)?")


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
