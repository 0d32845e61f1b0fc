"""The optimiser, the learning rate schedule, and the moving average of the weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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
    """An exponential moving average of the parts that training changes: their weights, and their
    buffers such as the statistics of batch norms. Without a decay it does nothing."""

    def __init__(self, network: nn.Module, options: Optimiser) -> None:
        self.decay = options.averaging
        parts = {
            name: part
            for name, part in network.named_children()
            if any(weight.requires_grad for weight in part.parameters())
        }
        self._live = nn.ModuleDict(parts)
        self._mean: AveragedModel | None = None
        self.restart()

    def restart(self) -> None:
        """Start a new average with the current weights."""
        self.steps = 0
        if self.decay:
            self._mean = AveragedModel(self._live, multi_avg_fn=self._average, use_buffers=True)
            self._mean.n_averaged += 1  # at 0 the first update would copy

    def update(self) -> None:
        """Call after each step."""
        if self._mean is not None:
            self.steps += 1
            self._mean.update_parameters(self._live)

    @torch.no_grad()
    def _average(self, means: Any, weights: Any, _: Any) -> None:
        """The decay is smaller in the first steps, so that the initial weights are forgotten
        sooner."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        if means[0].is_floating_point():
            torch._foreach_lerp_(means, weights, 1 - decay)
        else:  # a count of batches
            torch._foreach_copy_(means, weights)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the network's weights. Call it before validation, and again
        after saving."""
        live = self._live.state_dict()
        for name, mean in self.tensors().items():
            kept = live[name].clone()
            live[name].copy_(mean)
            mean.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._mean is None else self._mean.module.state_dict()

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        self.steps = steps
        for name, mean in self.tensors().items():
            if name in tensors:  # checkpoints of earlier versions have no buffers
                mean.copy_(tensors[name])
