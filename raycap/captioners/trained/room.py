"""How many pictures the device has room for at once: found by trying, halved when it runs out, remembered."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Room:
    """The batch size that works."""

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures

    def each(
        self, items: Sequence[Item], act: Callable[[Sequence[Item]], list[Answer]]
    ) -> list[Answer | MemoryError]:
        """`act` on batches of `items`; an item that does not fit even alone is answered with the error."""
        answers: list[Answer | MemoryError] = []
        while len(answers) < len(items):
            batch = items[len(answers) : len(answers) + self.pictures]
            try:
                answers += act(batch)
                continue
            except (
                RuntimeError,
                MemoryError,
            ) as error:  # torch.OutOfMemoryError is a RuntimeError
                if not _ran_out(error):
                    raise
            # Outside the handler: the error's traceback holds the tensors that filled the memory.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(batch) == 1:
                answers.append(
                    MemoryError("the device's memory is too small for this picture, even alone")
                )
            else:
                self.pictures = len(batch) // 2
                log.warning(
                    "out of memory with %d pictures at once: going on with %d",
                    len(batch),
                    self.pictures,
                )
        return answers


def _ran_out(error: Exception) -> bool:
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)
