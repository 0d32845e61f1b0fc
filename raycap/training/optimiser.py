"""The optimiser, the learning rate schedule, and the moving average of the weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raycap.training.network import Network
from raycap.training.options import Optimiser, Schedule, Train

OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def build_optimiser(network: Network, options: Train, lr: float) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable weights, with separate learning rates for encoder, word
    embeddings and decoder.

    `lr` is the decoder's rate. The other rates keep their proportion to it.
    """
    share = lr / options.lr
    rates = {
        "encoder": options.encoder_lr * share,
        "decoder.embedding": (options.embedding_lr or options.lr) * share,
        "decoder": lr,
    }
    groups = []
    for decayed in (True, False):  # matrices have weight decay; biases and scales have none
        parts: dict[str, list[nn.Parameter]] = {part: [] for part in rates}
        for name, weight in network.named_parameters():
            if weight.requires_grad and (weight.ndim > 1) == decayed:
                part = next(part for part in rates if name.startswith(f"{part}."))
                parts[part].append(weight)
        for part, weights in parts.items():
            if weights:
                groups.append(
                    {
                        "params": weights,
                        "lr": rates[part],
                        "full_lr": rates[part],
                        "weight_decay": options.optimiser.weight_decay if decayed else 0.0,
                    }
                )
    return OPTIMISERS[options.optimiser.kind](groups, fused=True)  # type: ignore[call-arg]


class LearningRates:
    """The schedule: at each step, all learning rates are multiplied by the same share."""

    def __init__(self, options: Schedule, steps: int) -> None:
        self.options, self.steps = options, steps
        # For `plateau` only: the current share, and the epochs since the last improvement.
        self._share, self._worse = 1.0, 0

    def share(self, step: int) -> float:
        """The share at this step (counted from 0) of the phase."""
        warm = min(1.0, (step + 1) / (self.options.warmup + 1))
        if self.options.kind == "cosine":
            done = max(0, step - self.options.warmup) / max(1, self.steps - self.options.warmup)
            down = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
            return warm * (self.options.floor + (1 - self.options.floor) * down)
        return warm * self._share

    def apply(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        """Set the optimiser's rates for this step."""
        for group in optimiser.param_groups:
            group["lr"] = group["full_lr"] * self.share(step)

    def epoch_validated(self, is_best: bool) -> None:
        """For `plateau`: lower the rates if there was no improvement for `patience` epochs."""
        self._worse = 0 if is_best else self._worse + 1
        if self.options.kind == "plateau" and self._worse > self.options.patience:
            self._share = max(self._share * self.options.factor, self.options.floor)
            self._worse = 0

    def state(self) -> dict[str, Any]:
        return {"share": self._share, "worse": self._worse}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._share, self._worse = state["share"], state["worse"]


class WeightAverage:
    """An exponential moving average of the trainable weights; without a decay it does nothing."""

    def __init__(self, network: nn.Module, options: Optimiser) -> None:
        self.decay = options.averaging
        self._live = {
            name: weight for name, weight in network.named_parameters() if weight.requires_grad
        }
        self._mean: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Start a new average with the current weights."""
        self.steps = 0
        if self.decay:
            self._mean = {name: weight.detach().clone() for name, weight in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after each step. The decay is smaller in the first steps, so that the initial
        weights are forgotten sooner."""
        if self._mean:
            self.steps += 1
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            weights: list[Tensor] = list(self._live.values())
            torch._foreach_lerp_(list(self._mean.values()), weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the network's weights. Call it before validation, and again
        after saving."""
        for name, mean in self._mean.items():
            live = self._live[name]
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._mean)

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        self.steps = steps
        for name, mean in self._mean.items():
            mean.copy_(tensors[name])
