"""Pictures read in a process beside the worker, one at a time: a picture that kills its reader costs its own row.

A worker that died while it read a block of pictures leaves no word of which one it was. So the second time that Ray
tries a block, each picture is read here, and the one at whose turn the process dies twice has its reason.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import ray

from raycap.images import Picture, Reading, Square, read_picture

DEATHS = 2


def is_second_try() -> bool:
    """Whether Ray runs this task again after its worker died."""
    worker: Any = ray._private.worker.global_worker  # Ray says it nowhere else
    return bool(worker.connected and worker.core_worker.get_current_task_attempt_number())


def read_alone(data: Sequence[bytes | None], reading: Reading, square: Square) -> Iterator[Picture | None]:
    """For each picture what became of it; None where there are no bytes."""
    reader = _reader()
    try:
        for each in data:
            picture = None
            for _ in range(DEATHS if each is not None else 0):
                try:
                    picture = reader.submit(read_picture, each or b"", reading, square).result()
                    break
                except BrokenProcessPool:
                    reader.shutdown()
                    reader = _reader()
                    picture = Picture(None, "", 0, 0, "reading it kills the process")
            yield picture
    finally:
        reader.shutdown()


def _reader() -> ProcessPoolExecutor:
    # Not a fork: the worker has threads of Ray's, which a fork would leave in any state.
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
