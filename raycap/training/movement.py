"""How weights move: the optimiser with its rates, the schedule of the rates, the average of the weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raycap.training import Optimiser, Schedule, Train
from raycap.training.network import Network

KINDS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimiser(network: Network, options: Train, lr: float) -> torch.optim.Optimizer:
    """Adam over what is trainable: encoder, words' vectors and decoder each with its own rate.

    `lr` is the decoder's; the other rates keep their proportion to it.
    """
    share = lr / options.lr
    rates = {
        "encoder": options.encoder_lr * share,
        "decoder.embedding": (options.embedding_lr or options.lr) * share,
        "decoder": lr,
    }
    groups = []
    for decays in (True, False):
        parts: dict[str, list[nn.Parameter]] = {part: [] for part in rates}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and (parameter.ndim > 1) == decays:
                parts[next(part for part in rates if name.startswith(f"{part}."))].append(parameter)
        decay = options.optimiser.weight_decay if decays else 0.0
        groups += [
            {"params": own, "lr": rates[part], "full_lr": rates[part], "weight_decay": decay}
            for part, own in parts.items()
            if own
        ]
    return KINDS[options.optimiser.kind](groups, fused=True)  # type: ignore[call-arg]


class Pace:
    """What share of the full rates a step takes."""

    def __init__(self, options: Schedule, steps: int) -> None:
        self.options, self.steps = options, steps
        self._share, self._worse = 1.0, 0  # plateau: where the rates are, and epochs since the last better one

    def share(self, step: int) -> float:
        """For the step of this number, from 0."""
        warm = min(1.0, (step + 1) / (self.options.warmup + 1))
        if self.options.kind == "cosine":
            done = max(0, step - self.options.warmup) / max(1, self.steps - self.options.warmup)
            down = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
            return warm * (self.options.floor + (1 - self.options.floor) * down)
        return warm * self._share

    def judge(self, better: bool) -> None:
        """An epoch was validated: was it the best so far?"""
        self._worse = 0 if better else self._worse + 1
        if self.options.kind == "plateau" and self._worse > self.options.patience:
            self._share, self._worse = max(self._share * self.options.factor, self.options.floor), 0

    def set(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        """Give the step's rates to the optimiser."""
        for group in optimiser.param_groups:
            group["lr"] = group["full_lr"] * self.share(step)

    def state(self) -> dict[str, Any]:
        return {"share": self._share, "worse": self._worse}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._share, self._worse = state["share"], state["worse"]


class Average:
    """An exponential average of the weights that training changes."""

    def __init__(self, network: nn.Module, options: Optimiser) -> None:
        self.decay = options.averaging
        self._live = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self._mean: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Start anew from the weights as they are."""
        self._steps = 0
        if self.decay:
            self._mean = {name: weight.detach().clone() for name, weight in self._live.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """After a step; the first steps are averaged over fewer, or the random beginning would stay for long."""
        if self._mean:
            self._steps += 1
            decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
            torch._foreach_lerp_(list(self._mean.values()), list(self._live.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the live weights: once before judging or saving, once after."""
        for name, mean in self._mean.items():
            live = self._live[name]
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._mean)

    @property
    def steps(self) -> int:
        return self._steps

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        self._steps = steps
        for name, mean in self._mean.items():
            mean.copy_(tensors[name])
