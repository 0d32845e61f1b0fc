"""Work that begins in this process before Ray has started.

A process that holds the model already has its first rows done in less time than Ray takes to
start. So it makes the first chunk, then Ray is started, and the workers there take over.
"""

import time
from collections.abc import Callable

from raycap.bulk.plan import Chunk
from raycap.bulk.worker_pool import LocalPool, Worker, WorkerPool

# Where the first chunk takes longer, as from a slow server, Ray is not kept waiting for it.
MOST_SECONDS_ALONE = 5.0


class EarlyPool:
    """One worker in this process, until those of another pool are ready."""

    def __init__(self, here: LocalPool, start_others: Callable[[], WorkerPool]) -> None:
        self._here: LocalPool | None = here
        self._start_others = start_others
        self._others: WorkerPool | None = None
        self._given: set[Chunk] = set()  # to the worker here
        self._began = time.monotonic()

    @property
    def workers(self) -> list[Worker]:
        here = [] if self._here is None else self._here.workers
        return [*here, *([] if self._others is None else self._others.workers)]

    def start_workers(self, rows: int | None) -> None:
        if self._others is None and self._is_time():
            self._others = self._start_others()
        if self._others is not None:
            self._others.start_workers(rows)
            self._hand_over(self._others)
        elif self._here is not None:
            self._here.start_workers(rows)

    def _is_time(self) -> bool:
        """Whether the first chunk is made, or takes long, or the worker here is lost."""
        is_made = any(not self._holds(chunk) for chunk in self._given)
        return is_made or self._here is None or time.monotonic() - self._began > MOST_SECONDS_ALONE

    def _holds(self, chunk: Chunk) -> bool:
        return any(chunk in worker.chunks for worker in self.workers)

    def _hand_over(self, others: WorkerPool) -> None:
        """When other workers are ready, the one here only finishes what it has."""
        if self._here is None or not any(worker.is_ready for worker in others.workers):
            return
        for worker in self._here.workers:
            worker.is_leaving = True
        if not any(worker.chunks for worker in self._here.workers):
            self._end_here()

    def _end_here(self) -> None:
        here, self._here = self._here, None
        if here is not None:
            for worker in here.workers:
                worker.chunks.clear()
            here.close()

    def _is_here(self, worker: Worker) -> bool:
        return self._here is not None and worker in self._here.workers

    def pause(self, seconds: float) -> None:
        if self._others is not None:
            self._others.pause(seconds)

    def make(self, worker: Worker, chunk: Chunk) -> None:
        if self._here is not None and self._is_here(worker):
            self._given.add(chunk)
            self._here.make(worker, chunk)
        elif self._others is not None:
            self._others.make(worker, chunk)

    def ask_progress(self) -> None:
        for pool in (self._here, self._others):
            if pool is not None:
                pool.ask_progress()

    def stop_worker(self, worker: Worker) -> None:
        if self._is_here(worker):
            self._end_here()
        elif self._others is not None:
            self._others.stop_worker(worker)

    def has_free_processors(self) -> bool:
        return self._others is None or self._others.has_free_processors()

    def close(self) -> None:
        if self._others is not None:
            self._others.close()
        self._end_here()
