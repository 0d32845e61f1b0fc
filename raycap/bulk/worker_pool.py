"""The workers of a table job, as the run sees them, and a worker in this process.

Everything that happens is put into one queue, which the run reads.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from raycap.bulk.loading import LocalLoader
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import Chunk, Shard
from raycap.bulk.work import (
    ROWS_PER_TASK,
    ChunkWorker,
    FinishedChunk,
    WorkerProgress,
    WorkOrder,
)
from raycap.errors import UserError
from raycap.terminal import write_err

SECONDS_TO_END = 30.0
# A model in this process is as fast as the decoder of one child on four processors.
PROCESSORS_PER_DECODER, MOST_DECODING = 4, 8
# Over which the pace of a worker is measured.
SECONDS_OF_PACE = 1.0
# Chunks of one worker at one time, at most. Most of them wait for slow rows: in a list of
# addresses of which 5% are dead, nearly each chunk of 64 rows waits for half a minute.
MOST_CHUNKS = 256


@dataclass(eq=False)
class Worker:
    """One worker, as the run sees it."""

    actor: Any = None
    name: str = ""
    is_ready: bool = False
    is_leaving: bool = False  # its node will be taken away: it gets no new chunks
    is_asked: bool = False  # how far it is, and has not answered yet
    rows_done: int = 0
    rows_idle: int = 0  # of its chunks: done, or waiting for a server
    pace: float = 0.0  # rows a second
    chunks: set[Chunk] = field(default_factory=set)  # that it works on
    started_at: float = field(default_factory=time.monotonic)
    _paced: tuple[float, int] = (0.0, 0)  # when the pace was measured, and the rows done by then

    def note_progress(self, progress: WorkerProgress) -> None:
        self.rows_done, self.rows_idle = progress.rows_done, progress.rows_idle
        now, (before, rows_before) = time.monotonic(), self._paced
        if now - before >= SECONDS_OF_PACE:
            self.pace = (self.rows_done - rows_before) / (now - before) if before else 0.0
            self._paced = now, self.rows_done

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)

    @property
    def rows_to_do(self) -> int:
        return max(0, self.rows - self.rows_idle)


# What the queue holds.


@dataclass(frozen=True)
class Planned:
    """A shard is written down."""

    shard: Shard


@dataclass(frozen=True)
class PlanFailed:
    """The listing has ended too early."""

    error: BaseException


@dataclass(frozen=True)
class Answered:
    """A worker has answered: it is ready, it has made a chunk, or it says how far it is."""

    worker: Worker
    chunk: Chunk | None
    answer: FinishedChunk | WorkerProgress | None  # None: it is ready


@dataclass(frozen=True)
class Failed:
    """A worker could not do something, or is lost."""

    worker: Worker
    chunk: Chunk | None
    error: BaseException


class LostHereError(Exception):
    """What a worker in this process could not do, and workers elsewhere may."""


class WorkerPool(Protocol):
    """Workers, wherever they are."""

    @property
    def workers(self) -> list[Worker]: ...

    def start_workers(self, rows: int | None) -> None:
        """Start workers where there is room; called again and again. `rows` is how many are left,
        if that is known."""

    def pause(self, seconds: float) -> None:
        """Start no worker for some time."""

    def make(self, worker: Worker, chunk: Chunk) -> None:
        """Give a chunk to a worker."""

    def ask_progress(self) -> None:
        """Ask workers how far they are."""

    def stop_worker(self, worker: Worker) -> None:
        """End a worker. What it was working on is not made."""

    def has_free_processors(self) -> bool:
        """Whether work could be done now that the workers have ended."""

    def close(self) -> None:
        """End all workers."""


def list_in_thread(
    lister: Callable[[], Iterator[Shard]], events: "queue.SimpleQueue[Any]"
) -> None:
    """Run a generator of shards in a thread; each shard comes as an event."""

    def forward() -> None:
        try:
            for shard in lister():
                events.put(Planned(shard))
        except BaseException as error:  # noqa: BLE001 - the run raises it
            events.put(PlanFailed(error))

    threading.Thread(target=forward, daemon=True, name="plan").start()


class LocalPool:
    """One worker in this process, for jobs that are done before Ray would have started."""

    def __init__(
        self,
        options: BulkOptions,
        order: WorkOrder,
        events: "queue.SimpleQueue[Any]",
        runs_model: bool,
        until: str = "",
    ) -> None:
        """`until` says how long the work is done here, if other workers follow."""
        self.workers: list[Worker] = []
        self._options, self._order, self._events = options, order, events
        self._runs_model, self._until = runs_model, until
        self._made: ChunkWorker | None = None

    def start_workers(self, rows: int | None) -> None:
        if not self.workers:
            if self._runs_model:
                batch = self._options.batch_size
                here = f"the model runs in this process{self._until}"
                write_err(f"raycap: {here}, in batches of {batch}\n")
            else:  # a server has no batches that were chosen here
                write_err("raycap: the work is done in this process, without Ray\n")
            self.workers.append(Worker())
            self._in_thread(self._open)

    def _in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=function, args=arguments, daemon=True, name="chunk").start()

    def _open(self) -> None:
        [worker] = self.workers
        try:
            processors = os.cpu_count() or 1
            threads = self._options.threads or processors
            decoding = min(MOST_DECODING, max(1, processors // PROCESSORS_PER_DECODER))
            loader = LocalLoader(
                self._order.loading(), min(self._order.batch, ROWS_PER_TASK), decoding
            )
            self._made = ChunkWorker(self._order, loader, threads, f"here {os.getpid()}")
            self._events.put(Answered(worker, None, None))
        except BaseException as error:  # noqa: BLE001 - the run raises it
            self._events.put(Failed(worker, None, self._as_lost(error)))

    def _as_lost(self, error: BaseException) -> BaseException:
        """A fault here is not the end where other workers follow."""
        if not self._until or isinstance(error, UserError) or not isinstance(error, Exception):
            return error
        lost = LostHereError(f"{type(error).__name__}: {error}")
        lost.__cause__ = error
        return lost

    def pause(self, seconds: float) -> None: ...

    def make(self, worker: Worker, chunk: Chunk) -> None:
        worker.chunks.add(chunk)
        self._in_thread(self._make, worker, chunk)

    def _make(self, worker: Worker, chunk: Chunk) -> None:
        assert self._made is not None
        try:
            self._events.put(Answered(worker, chunk, self._made.make(chunk)))
        except BaseException as error:  # noqa: BLE001 - the run raises it
            self._events.put(Failed(worker, chunk, self._as_lost(error)))

    def ask_progress(self) -> None:
        if self._made is not None:
            [worker] = self.workers
            worker.note_progress(self._made.progress())

    def stop_worker(self, worker: Worker) -> None: ...

    def has_free_processors(self) -> bool:
        return True

    def close(self) -> None:
        if self._made is not None:
            self._made.stop(SECONDS_TO_END)
