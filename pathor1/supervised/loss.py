"""The loss of a supervised stage: cross entropy on what the assistant says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pathor1.supervised.encode import IGNORED


class AssistantLoss(nn.Module):
    """A vision-language model with its pixels' normalisation and its loss: what DeepSpeed trains."""

    def __init__(self, model: Any, image_processor: Any) -> None:
        super().__init__()
        self.model = model
        self.mean: Sequence[float] = image_processor.image_mean
        self.std: Sequence[float] = image_processor.image_std
        self.scale: float = image_processor.rescale_factor

    def forward(
        self,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
        sources: torch.Tensor,
        patches: torch.Tensor,
        grids: torch.Tensor,
        number_of_sources: int = 1,
    ) -> torch.Tensor:
        """[number_of_sources] float32: the sum of -log p over the learned tokens of each source (nats).

        The other arguments are those of a Batch. Only the positions before learned tokens go through the language head:
        with a vocabulary of 150,000 the logits are the largest tensor of a step.
        """
        hidden = self.model.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            pixel_values=self.normalized(patches),
            image_grid_thw=grids,
        ).last_hidden_state
        targets = labels[:, 1:]
        learned = targets != IGNORED
        logits = self.model.lm_head(hidden[:, :-1][learned])
        each = functional.cross_entropy(logits.float(), targets[learned], reduction="none")
        return each.new_zeros(number_of_sources).index_add(0, sources[:, 1:][learned], each)

    def normalized(self, patches: torch.Tensor) -> torch.Tensor:
        """[p, d] uint8 -> [p, d] in the model's type: (value x rescale_factor - mean) / std, channel by channel.

        d runs over channel, time, height and width, channel first (Qwen2-VL's image processor).
        """
        values = patches.view(len(patches), len(self.mean), -1).to(torch.float32) * self.scale
        mean = torch.tensor(self.mean, device=values.device).view(1, -1, 1)
        std = torch.tensor(self.std, device=values.device).view(1, -1, 1)
        return ((values - mean) / std).view(len(patches), -1).to(self.model.dtype)
