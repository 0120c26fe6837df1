"""How much memory and disk a run will take: estimates from a model's size and a recipe, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from pathor1.model.check import Size
from pathor1.recipe import Recipe

BYTES = {"float32": 4, "bfloat16": 2}
# Of each of a run's processes before it holds anything: Python with torch, verl or vLLM loaded. Measured on two cores.
PROCESS = 700 << 20
# The processes beside the ranks: driver, queue, agents, Ray's own, the stream's workers are counted one by one.
OTHER_PROCESSES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one rank needs at its peak, in bytes: of the GPU where there is one, else of the host."""

    weights: int  # its share of the actor's, float32, and of the reference's
    gradients: int
    optimizer: int
    activations: int  # of one micro-batch, its logits among them
    engine: int  # vLLM's weights
    key_value: int  # the KV cache of one answer as long as it may be
    apart: bool  # vLLM has accelerators of its own

    @property
    def training(self) -> int:
        """While the actor learns; vLLM sleeps meanwhile on a GPU."""
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def generating(self) -> int:
        """While vLLM generates; the actor's weights stay where they are."""
        return self.engine + self.key_value + (0 if self.apart else self.weights + self.optimizer)


def of_rank(size: Size, recipe: Recipe, *, with_reference: bool) -> Memory:
    """What one training process and its vLLM need. with_reference: whether the loss has a KL to a frozen model."""
    ranks = recipe.cluster.nodes * recipe.cluster.accelerators_per_node
    tokens = recipe.rl.max_tokens_per_update
    width = BYTES[recipe.model.dtype]
    share = -(-4 * size.parameters // ranks)
    # With checkpointing a layer keeps its input alone; without, some sixteen tensors of that size.
    kept = 1 if recipe.model.gradient_checkpointing else 16
    # Logits in the model's type, and in float32 with their gradients.
    logits = tokens * size.vocabulary * (width + 8)
    per_token = 2 * size.layers * size.key_value_heads * size.head * width
    return Memory(
        weights=share * (2 if with_reference else 1),
        gradients=share,
        optimizer=2 * share,
        activations=tokens * size.hidden * size.layers * kept * width + logits,
        engine=-(-width * size.parameters // recipe.rollout.tensor_parallel),
        key_value=per_token * (recipe.data.max_prompt_tokens + recipe.rl.max_response_tokens),
        apart=recipe.cluster.rollout_accelerators > 0,
    )


def of_checkpoint(size: Size) -> int:
    """One checkpoint: weights, AdamW's two moments and the weights again for Hugging Face, all in float32."""
    return size.parameters * (4 + 8 + 4)
