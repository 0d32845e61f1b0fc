"""The batch size that fits into the device's memory: found by trying, halved when memory runs out,
remembered."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class FittingBatch:
    """The largest batch that is known to fit."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self, items: Sequence[Item], function: Callable[[Sequence[Item]], list[Answer]]
    ) -> list[Answer | MemoryError]:
        """Call `function` for batches of the items. The answer about an item that does not fit
        even alone is a MemoryError."""
        answers: list[Answer | MemoryError] = []
        while len(answers) < len(items):
            batch = items[len(answers) : len(answers) + self.size]
            try:
                answers += function(batch)
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
                self.size = len(batch) // 2
                log.warning(
                    "out of memory with %d pictures at once: going on with %d",
                    len(batch),
                    self.size,
                )
        return answers


def _ran_out(error: Exception) -> bool:
    memory_errors = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, memory_errors) or "can't allocate memory" in str(error)
