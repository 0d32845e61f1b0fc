"""The workers of a run as one group: sums and lists over all of them. A single worker needs no
network."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

Item = TypeVar("Item")
# In numbers. A gradient of at least LARGE numbers is sent as it is: copying it into a common
# buffer and back takes longer than sending it. The others share buffers of about BUFFER numbers,
# so that the copy does not need much memory.
LARGE, BUFFER = 1 << 15, 8 << 20


class WorkerGroup:
    """This worker among all workers. Where torch.distributed was not set up, it is the only
    one."""

    def __init__(self) -> None:
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if several else 0
        self.size = torch.distributed.get_world_size() if several else 1

    @property
    def leads(self) -> bool:
        """Whether this worker writes the files."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum of all workers' `numbers`, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def any(self, flags: Sequence[bool], device: torch.device) -> list[bool]:
        """For each flag whether any worker has set it: the same answer in every worker, at the
        same step."""
        if self.size == 1:
            return list(flags)
        counts = self.sum(torch.tensor(flags, dtype=torch.int32, device=device))
        return [count > 0 for count in counts.tolist()]

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Each gradient becomes the sum over all workers; a worker without pictures adds zeros.

        DistributedDataParallel would take the mean of the workers' means. With captions of unequal
        length that is not the mean over words, and two workers would not do what one does.
        """
        if self.size == 1:
            return
        small, sending = [], []
        for weight in weights:
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            # Decided by the weight, which is the same in every worker, and not by the gradient.
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
        """Give the leader's weights to all."""
        if self.size > 1:
            for tensor in network.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """Every worker's items, in the order of the workers."""
        if self.size == 1:
            return list(items)
        gathered: list[Sequence[Item]] = [()] * self.size
        torch.distributed.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]

    def wait(self) -> None:
        """Wait until all workers are here."""
        self.gather([None])


def _buffers(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in groups of about BUFFER numbers."""
    group: list[Tensor] = []
    for gradient in gradients:
        group.append(gradient)
        if sum(one.numel() for one in group) >= BUFFER:
            yield group
            group = []
    if group:
        yield group
