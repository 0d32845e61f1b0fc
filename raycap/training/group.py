"""The processes that train together, as one: sums and lists over all of them. One alone needs no network."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

Item = TypeVar("Item")
# Numbers sent at once: large enough to fill the line, small enough that the copy is not felt in memory.
PIECE = 8 << 20


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
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for piece in _pieces(parameters):
            gradients = [parameter.grad for parameter in piece if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self.add(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

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


def _pieces(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    piece: list[nn.Parameter] = []
    for parameter in parameters:
        piece.append(parameter)
        if sum(one.numel() for one in piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece
