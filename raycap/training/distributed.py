"""Communication between the workers of a training run. A single worker does not use
torch.distributed."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

Item = TypeVar("Item")
# Sizes in elements. A gradient with at least LARGE elements is sent by itself: copying it into a
# buffer and back takes longer than sending it. Smaller ones are sent together, in buffers of about
# BUFFER elements.
LARGE, BUFFER = 1 << 15, 8 << 20


class WorkerGroup:
    """All workers of the run, as seen from this one. If torch.distributed is not initialised, this
    is the only worker."""

    def __init__(self) -> None:
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if several else 0
        self.size = torch.distributed.get_world_size() if several else 1

    @property
    def leads(self) -> bool:
        """Whether this worker writes the files."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """Replace `numbers` by their sum over all workers, and return them."""
        if self.size > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def largest(self, number: int, device: torch.device) -> int:
        """The largest of the numbers that the workers give."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number, device=device)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return int(numbers)

    def any(self, flags: Sequence[bool], device: torch.device) -> list[bool]:
        """For each flag, whether any worker has set it. All workers get the same answer."""
        if self.size == 1:
            return list(flags)
        counts = self.sum(torch.tensor(flags, dtype=torch.int32, device=device))
        return [count > 0 for count in counts.tolist()]

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all workers. A worker without pictures adds zeros.

        DistributedDataParallel averages the means of the workers. Captions differ in length, so
        that is not the mean over words, and the result would depend on the number of workers.
        """
        if self.size == 1:
            return
        small, sending = [], []
        for weight in weights:
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            # All workers must decide alike, so look at the weight and not at the gradient.
            if weight.numel() >= LARGE and weight.is_contiguous():
                gradient = gradient.contiguous()
                sending.append(torch.distributed.all_reduce(gradient, async_op=True))
            else:
                small.append(gradient)
            weight.grad = gradient
        for gradients in _buffers(small):
            flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            summed = [part.view_as(own) for part, own in zip(parts, gradients, strict=True)]
            torch._foreach_copy_(gradients, summed)
        for work in sending:
            work.wait()

    def broadcast(self, network: nn.Module) -> None:
        """Copy the leader's weights to all workers."""
        if self.size > 1:
            for tensor in network.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The items of all workers, in the order of ranks."""
        if self.size == 1:
            return list(items)
        gathered: list[Sequence[Item]] = [()] * self.size
        torch.distributed.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]

    def wait(self) -> None:
        """Wait until all workers have called this."""
        self.gather([None])


def _buffers(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group the gradients into buffers of about BUFFER elements."""
    group: list[Tensor] = []
    for gradient in gradients:
        group.append(gradient)
        if sum(one.numel() for one in group) >= BUFFER:
            yield group
            group = []
    if group:
        yield group
