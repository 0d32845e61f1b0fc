"""The processes that train together, as one: sums and lists over all of them. One alone needs no network."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

Item = TypeVar("Item")
# Numbers. Gradients from the first size on are sent as they lie: copying them into one piece and back takes longer
# than sending. The others share pieces, each full from the second size on, so that the copy is not felt in memory.
LARGE, PIECE = 1 << 15, 8 << 20


class Group:
    """This process among those that train. Where torch.distributed was not set up, there is only this one."""

    def __init__(self) -> None:
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if together else 0
        self.size = torch.distributed.get_world_size() if together else 1

    @property
    def leads(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def add(self, numbers: Tensor) -> Tensor:
        """The sum of all processes' `numbers`, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Each gradient becomes the sum over all processes; one that had no picture adds nothing.

        Done here and not by DistributedDataParallel, which takes the mean of means: with captions of unequal length
        that is not the mean over words, and two workers would not do what one does.
        """
        if self.size == 1:
            return
        shared, sending = [], []
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            # Asked of the weight, which is the same in every process, and not of the gradient.
            if parameter.numel() >= LARGE and parameter.is_contiguous():
                gradient = gradient.contiguous()
                sending.append(torch.distributed.all_reduce(gradient, async_op=True))
            else:
                shared.append(gradient)
            parameter.grad = gradient
        for piece in _pieces(shared):
            flat = torch.cat([gradient.flatten() for gradient in piece])
            self.add(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in piece])
            torch._foreach_copy_(piece, [part.view_as(own) for part, own in zip(parts, piece, strict=True)])
        for sent in sending:
            sent.wait()

    def share(self, network: nn.Module) -> None:
        """Give the leader's weights to all."""
        if self.size > 1:
            for tensor in network.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def collect(self, items: Sequence[Item]) -> list[Item]:
        """Everybody's items, in the order of the processes."""
        if self.size == 1:
            return list(items)
        gathered: list[Sequence[Item]] = [()] * self.size
        torch.distributed.all_gather_object(gathered, items)
        return [item for one in gathered for item in one]

    def wait(self) -> None:
        """Until everybody is here."""
        self.collect([None])


def _pieces(gradients: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    piece: list[Tensor] = []
    for gradient in gradients:
        piece.append(gradient)
        if sum(one.numel() for one in piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece
