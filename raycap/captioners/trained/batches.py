"""The batch size that fits into the device's memory: found by trying before a run, halved when
memory runs out, remembered."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from raycap.errors import UserError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


# The batch that is tried first, a power of two.
FIRST_TRIED = 64
# The largest batch that is tried: more are hardly faster, and wait longer for their pictures.
MOST_PICTURES = 1024
# A batch is fit for a run if one that is larger by this share fits too.
MARGIN = 0.25


def largest_batch(try_batch: Callable[[int], object], most: int = MOST_PICTURES) -> int:
    """The largest power of two up to `most` that fits with a margin. `try_batch` computes a batch
    of a size, and raises torch.OutOfMemoryError if it does not fit."""

    def fits(size: int) -> bool:
        try:
            try_batch(math.ceil(size * (1 + MARGIN)))
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        else:
            return True
        release_memory()  # outside the handler, whose error holds tensors
        return False

    size = min(FIRST_TRIED, most)
    if fits(size):
        while 2 * size <= most and fits(2 * size):
            size *= 2
        return size
    while size > 1:
        size //= 2
        if fits(size):
            return size
    raise UserError(
        "the GPU's memory is too small for this captioner: give --device cpu, or a larger share "
        "of a GPU (--gpus)"
    )


def release_memory() -> None:
    """Give back what torch keeps of the memory of GPUs."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
                if not ran_out_of_memory(error):
                    raise
            # Outside the handler: the error's traceback holds the tensors that filled the memory.
            release_memory()
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


def ran_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had too little memory."""
    memory_errors = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, memory_errors) or "can't allocate memory" in str(error)
