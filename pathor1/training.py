"""Supervised training as tables of a recipe: the warm start of a run, and the stages before it (`pathor1.stage`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pathor1.recipe_table import Count, Fraction, NotNegative, Positive, PositiveNumber, Table

# Of a vision-language model, as a recipe names them (`pathor1.supervised.parts` has what belongs to each).
Part = Literal["vision_tower", "projector", "language_model"]

# Tokens of a forward and backward pass, as rl.max_tokens_per_update.
PASS = 16384


class Lora(Table):
    """Low-rank adapters on every linear layer of the language model, whose own weights then stay as they are."""

    rank: Positive = Field(default=16, description="Of the adapters. [our choice; LLaMA-Factory's example has 8]")
    alpha: Positive = Field(
        default=32, description="An adapter's output is multiplied by alpha / rank. [twice the rank: LLaMA-Factory]"
    )


class Steps(Table):
    """What every supervised stage has: its sizes and its optimizer."""

    steps: Positive = Field(description="Optimizer steps.")
    batch_size: Positive = Field(
        default=32,
        description="Samples a step, over all workers: the same ones however many workers there are. [our choice]",
    )
    learning_rate: PositiveNumber = Field(
        default=1e-5, description="Highest rate of AdamW. [LLaMA-Factory's VL example]"
    )
    warmup_steps: Count = Field(default=20, description="Steps over which the rate rises to it. [our choice]")
    final_learning_rate_fraction: Fraction = Field(
        default=0.1, description="The rate falls along a cosine to this share of its highest. [our choice]"
    )
    weight_decay: NotNegative = Field(default=0.01, description="Of AdamW. [verl]")
    zero_stage: Annotated[int, Field(ge=1, le=3)] = Field(
        default=2,
        description="DeepSpeed ZeRO: 1 spreads the optimizer's state over the workers, 2 gradients too, 3 weights too.",
    )
    max_tokens: Positive = Field(
        default=2048,
        description="Longest sample in tokens, those of its pictures, prompt and answer; a longer one is left out. "
        "[LLaMA-Factory]",
    )


class Stage(Steps):
    """A supervised stage with a run folder of its own, in which it goes on after a failure."""

    freeze: list[Part] = Field(
        default=[], description="Parts whose weights stay as they are; `projector` is what joins the other two."
    )
    lora: Lora | None = None
    offload: list[Literal["optimizer", "parameters"]] = Field(
        default=[],
        description="What lies in the nodes' memory in place of the GPUs': slower, and room for larger models. "
        "Parameters by ZeRO 3 alone.",
    )
    max_tokens_per_pass: Positive = Field(
        default=PASS,
        description="Tokens in one forward and backward pass of one worker, which bounds its memory: samples are "
        "packed to it, and a step makes as many passes as they need. [as rl.max_tokens_per_update]",
    )
    save_every: Positive = Field(
        default=500, description="Steps between checkpoints; the last step is always saved. [our choice]"
    )
    keep_checkpoints: Positive = Field(
        default=2, description="Checkpoints that are kept, the newest ones. [our choice]"
    )

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.max_tokens_per_pass < self.max_tokens:
            raise ValueError(
                f"max_tokens_per_pass = {self.max_tokens_per_pass} is below max_tokens = {self.max_tokens}; the "
                "longest sample has to fit"
            )
        if self.lora is None and len(set(self.freeze)) == 3:
            raise ValueError("freeze names all parts of the model, so that there is nothing to train")
        if "parameters" in self.offload and self.zero_stage < 3:
            raise ValueError(
                f'offload = ["parameters"] needs zero_stage = 3, not {self.zero_stage}, where each worker has them all'
            )
        return self


class WarmStart(Steps):
    """The supervised stage before RL, which teaches the format: on Ray Train with DeepSpeed. May be left out."""

    model: str = Field(
        min_length=1, description="The model it starts from, as in model.path, which is the model that RL starts from."
    )
    data: list[str] = Field(min_length=1, description="Samples with explanations, in the forms of data.train.")
    workers: Positive = Field(default=2, description="Training processes. [our choice]")

    def stage(self) -> Stage:
        """The same as a stage, which trains the whole model."""
        common = {name: getattr(self, name) for name in Steps.model_fields}
        return Stage(**common, max_tokens_per_pass=max(PASS, self.max_tokens))
