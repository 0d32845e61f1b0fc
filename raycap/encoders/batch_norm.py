"""Batch norms whose statistics are those of a whole step, of all workers."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """A batch norm over the pictures of all workers. torch's own needs GPUs.

    All workers must run it equally often, with no picture if they have none.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input.float()
        size = values.new_tensor([values.numel() / self.num_features])
        total = _Sum.apply(torch.cat([values.sum((0, 2, 3)), size]))
        count = total[-1].detach()
        mean = total[:-1] / count  # [C]
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all workers. The loss of the step is the sum of the workers' losses, so the
    gradient is a sum too."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        return _summed(numbers)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(numbers: Tensor) -> Tensor:
    summed = numbers.contiguous().clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(summed)
    return summed


def synchronise(network: nn.Module) -> None:
    """Replace the batch norms in `network` by synchronised ones, with the same weights and
    names."""
    for part in list(network.modules()):
        for name, norm in list(part.named_children()):
            if type(norm) is nn.BatchNorm2d:
                own = SynchronisedBatchNorm(norm.num_features, norm.eps, norm.momentum)
                for kept in ("weight", "bias", "running_mean", "running_var"):
                    setattr(own, kept, getattr(norm, kept))
                own.num_batches_tracked = norm.num_batches_tracked
                own.train(norm.training)
                setattr(part, name, own)
