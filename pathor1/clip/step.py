"""An optimizer step on the contrastive loss of a whole batch, over all ranks and in as many passes as memory asks for.

The loss of a pair hangs on all other pairs of the batch, so it cannot be added up from parts of it. Features are made
first, in passes that keep nothing; the loss and its gradients by the features come of all of them together, gathered
from all ranks by open_clip's own loss; then each pass is computed again, and handed the gradients of its features
(GradCache, Gao et al. 2021, arXiv 2101.06983). open_clip's `--accum-freq` computes the loss anew for each pass, and so
adds up the gradient of the temperature once for each; here it comes once, as in one large batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathor1.contrastive import Contrast

if TYPE_CHECKING:
    import torch

BETAS, EPSILON = (0.9, 0.98), 1e-6  # open_clip's, for ViTs
HIGHEST_SCALE = math.log(100)  # of the similarities, as a logarithm. [Radford et al. 2021]
# Trained on all ranks, and by the loss alone: not by the passes, of which DistributedDataParallel takes care.
OF_THE_LOSS = ("logit_scale", "logit_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """What came of a step. loss: the batch's (nats); gradient_norm: before it is cut; scale: of the similarities."""

    loss: float
    gradient_norm: float
    learning_rate: float
    scale: float
    stop: bool


class Trainer:
    """A model with its optimizer, for one stage. Where torch.distributed runs, on all of its ranks together."""

    def __init__(self, model: Any, stage: Contrast, *, dtype: str = "float32", seed: int = 0) -> None:
        import torch
        import torch.distributed as dist
        from open_clip import ClipLoss
        from torch.nn.parallel import DistributedDataParallel

        self.model, self.stage, self.seed = model, stage, seed
        self.device = next(model.parameters()).device
        several = dist.is_initialized()
        self.rank: int = dist.get_rank() if several else 0
        self.ranks: int = dist.get_world_size() if several else 1
        self.autocast = dtype == "bfloat16"
        self.optimizer = torch.optim.AdamW(_groups(model, stage.weight_decay), betas=BETAS, eps=EPSILON)
        self.loss = ClipLoss(
            local_loss=True, gather_with_grad=True, cache_labels=True, rank=self.rank, world_size=self.ranks
        )
        self.wrapped = model
        if self.ranks > 1:
            # It takes care of what has a gradient when it is made.
            own = [parameter for name in OF_THE_LOSS if (parameter := getattr(model, name, None)) is not None]
            for parameter in own:
                parameter.requires_grad_(False)
            self.wrapped = DistributedDataParallel(model)
            for parameter in own:
                parameter.requires_grad_()
        # Of values from 0 to 255.
        self.mean, self.std = (
            255 * torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (model.visual.image_mean, model.visual.image_std)
        )

    def step(self, pixels: torch.Tensor, tokens: torch.Tensor, *, number: int, stop: bool = False) -> Stepped:
        """One optimizer step on this rank's share of a batch, of as many pairs as every other rank's.

        pixels: [n, height, width, 3] uint8; tokens: [n, context] int64. number: of the step in its stage, from 1. stop:
        this rank would stop behind the step, which all are told.
        """
        import torch

        rate = self.learning_rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(pixels, tokens, number)
        told = torch.tensor([loss, float(stop)], device=self.device)
        self._sum(told)
        length = self._gradient_norm()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, HIGHEST_SCALE)
        total, asked = told.tolist()
        return Stepped(
            loss=total / self.ranks,
            gradient_norm=float(length),
            learning_rate=rate,
            scale=math.exp(self.model.logit_scale.item()),
            stop=asked > 0,
        )

    def learning_rate(self, number: int) -> float:
        """Of a step of the stage: up to the highest in a line, and then down along a cosine."""
        stage = self.stage
        if number <= stage.warmup_steps:
            return stage.learning_rate * number / stage.warmup_steps
        done = (number - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
        least = stage.final_learning_rate_fraction
        return stage.learning_rate * (least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def _gradients(self, pixels: torch.Tensor, tokens: torch.Tensor, number: int) -> float:
        """Fills the parameters' gradients with the mean over the ranks; returns this rank's part of the loss."""
        import torch

        parts = list(zip(pixels.chunk(self.stage.passes), tokens.chunk(self.stage.passes), strict=True))
        once = len(parts) == 1
        made: Any = None
        if once:
            made = self._features(*parts[0], number, 0)
            images, texts = (each.detach().float() for each in made)
        else:
            with torch.no_grad():
                cached = [self._features(*part, number, place, by=self.model) for place, part in enumerate(parts)]
            images, texts = (torch.cat(list(each)).float() for each in zip(*cached, strict=True))
        images.requires_grad_()
        texts.requires_grad_()
        bias = getattr(self.model, "logit_bias", None)
        loss = self.loss(images, texts, self.model.logit_scale.exp(), bias)
        loss.backward()
        gradients = list(zip(images.grad.chunk(len(parts)), texts.grad.chunk(len(parts)), strict=True))
        for place, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
            last = place == len(parts) - 1
            # The ranks' gradients are brought together once, with the last pass.
            with nullcontext() if last or self.ranks == 1 else self.wrapped.no_sync():
                features: Sequence[Any] = made if once else self._features(*part, number, place)
                torch.autograd.backward(
                    list(features), [each.to(one.dtype) for one, each in zip(features, gradient, strict=True)]
                )
        for name in OF_THE_LOSS:
            parameter = getattr(self.model, name, None)
            if parameter is not None and parameter.grad is not None:
                self._sum(parameter.grad)
                parameter.grad /= self.ranks
        return float(loss.detach())

    def _gradient_norm(self) -> torch.Tensor:
        """The gradients' length, before they are cut to the stage's highest, where it has one."""
        import torch

        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        length = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained])
        if self.stage.max_gradient_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, self.stage.max_gradient_norm, length)
        return length

    def _features(
        self, pixels: torch.Tensor, tokens: torch.Tensor, number: int, place: int, *, by: Any = None
    ) -> tuple[Any, Any]:
        """Features of length 1 of a pass; what is random in it is the same whenever it is computed again."""
        import torch

        seed = hash((self.seed, number, self.rank, place)) % (1 << 63)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        # Plane by plane: where colours lie side by side, a CPU takes longer for what follows, and for the first layer.
        images = images.to(torch.float32, memory_format=torch.contiguous_format)
        images.sub_(self.mean).div_(self.std)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            features = (self.wrapped if by is None else by)(images, tokens.to(self.device, non_blocking=True))
        if isinstance(features, dict):
            return features["image_features"], features["text_features"]
        return features[0], features[1]

    def _sum(self, tensor: torch.Tensor) -> None:
        import torch.distributed as dist

        if self.ranks > 1:
            dist.all_reduce(tensor)


def _groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Gains, biases and the temperature do not decay. [open_clip]"""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = [parameter for name, parameter in named if parameter.ndim < 2 or "bn" in name or "ln" in name]
    chosen = {id(parameter) for parameter in plain}
    rest = [parameter for _, parameter in named if id(parameter) not in chosen]
    return [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": weight_decay}]
